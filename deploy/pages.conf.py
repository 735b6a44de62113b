"""How gunicorn serves the pages of a cluster: WSGI, in threads, each with a lasting connection."""

import os
from typing import Any

wsgi_app = "chatsite.wsgi:application"
worker_class = "gthread"
workers = int(os.environ.get("PAGES_WORKERS") or 1)
threads = 8
_host = os.environ.get("HOST", "127.0.0.1")
bind = f"{f'[{_host}]' if ':' in _host else _host}:{os.environ.get('PORT', '8000')}"
graceful_timeout = 10
timeout = 60
keepalive = 75  # longer than a proxy keeps a connection idle: nginx's default is 60 s
loglevel = "warning"
accesslog = None
control_socket_disable = True
# Only a proxy named in TRUSTED_PROXIES is believed, and that is for the application to say.
forwarded_allow_ips = ""


def when_ready(server: Any) -> None:
    """End with whoever started us, also when that one was killed."""
    from deploy import lifeline

    lifeline.follow()


def post_worker_init(worker: Any) -> None:
    from inference import collector

    collector.settle()


def worker_exit(server: Any, worker: Any) -> None:
    """Connections of the pool are closed in order, not dropped."""
    from django.db import connections

    connections.close_all()
