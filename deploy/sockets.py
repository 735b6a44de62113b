"""gunicorn's WebSocket, and what it lacks: a limit on open files."""

import resource
from typing import Any

from gunicorn.asgi import websocket

KEPT_FILES = 64  # of the limit: for the database, Redis, and pages


class Socket(websocket.WebSocketProtocol):  # type: ignore[misc]  # gunicorn has no types
    """Answers 503 while files are short. (Of ASGI's refusals gunicorn makes 403.)"""

    async def run(self) -> None:
        if has_room(self.transport):
            await super().run()
        else:
            self._deny(503, "Service Unavailable")


def has_room(transport: Any) -> bool:
    """The system gives out the lowest number that is free: every one below it is in use."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = int(transport.get_extra_info("socket").fileno())
    return soft == resource.RLIM_INFINITY or number < soft - KEPT_FILES


def install() -> None:
    """gunicorn looks for its class by this name each time a socket is opened."""
    websocket.WebSocketProtocol = Socket
