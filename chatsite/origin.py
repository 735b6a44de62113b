"""Who may open a WebSocket: only pages of this very site (cookies alone do not prove that)."""

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.http.request import split_domain_port, validate_host

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SameOriginOnly:
    """Closes a handshake (HTTP 403) whose Origin is missing or is not the Host it was sent to."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_same_origin(scope["headers"]):
            await self._app(scope, receive, send)
        else:
            await refuse(scope, receive, send)


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Before the handshake: HTTP 403."""
    await send({"type": "websocket.close", "code": 4403})


def is_same_origin(headers: list[tuple[bytes, bytes]]) -> bool:
    values = {name: value.decode("latin-1") for name, value in headers}
    host, origin = values.get(b"host", ""), values.get(b"origin", "")
    if not validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS):
        return False
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    schemes = ("https",) if settings.HTTPS else ("http", "https")
    return origin.lower() in {f"{scheme}://{host.lower()}" for scheme in schemes}
