"""How gunicorn serves sockets and pages. `manage.py serve` and containers both use it."""

import os
import signal
import sys
from typing import Any

wsgi_app = "chatsite.asgi:application"
worker_class = "asgi"
asgi_loop = "uvloop"
asgi_lifespan = "off"
workers = 1
_host = os.environ.get("HOST", "127.0.0.1")
bind = f"{f'[{_host}]' if ':' in _host else _host}:{os.environ.get('PORT', '8000')}"
graceful_timeout = 18  # until it kills: 12.5 seconds of goodbyes, then PAGES_SECONDS
PAGES_SECONDS = 3  # a page takes far less; idle keep-alive connections count as busy
timeout = 60
keepalive = 20
websocket_max_message_size = 64 * 1024
loglevel = "warning"
accesslog = None
control_socket_disable = True


def when_ready(server: Any) -> None:
    """End with the supervisor, also when it was killed."""
    from deploy import lifeline, sockets

    lifeline.follow()
    sockets.allow_many()


def post_worker_init(worker: Any) -> None:
    """On SIGTERM say goodbye to every socket before gunicorn waits for connections to end."""
    from chatsite.draining import begin_draining
    from deploy import sockets
    from inference import collector

    worker.cfg.set("graceful_timeout", PAGES_SECONDS)  # here: once the goodbyes are said
    sockets.install()
    sys.setswitchinterval(0.0005)
    collector.settle()

    def drain() -> None:
        goodbye = worker.loop.create_task(begin_draining())
        goodbye.add_done_callback(lambda done: worker.handle_exit_signal())

    worker.loop.add_signal_handler(signal.SIGTERM, drain)
