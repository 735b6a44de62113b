"""Request bodies are read whole, here, before a thread is spent on them.

One that broke off is not looked at: what it says may be half of a sentence.
"""

import asyncio
from http import HTTPStatus

from django.conf import settings

from chatsite.origin import App, Receive, Scope, Send

SECONDS = 20.0  # for the whole body, however it drips in


class BrokeOff(Exception):
    """Whoever sent it has left: nobody waits for an answer."""


class WholeBody:
    """Answers 413 to a body over DATA_UPLOAD_MAX_MEMORY_SIZE and 408 to one that does not come.

    To one that broke off, nothing.

    Pages run in a few threads; a reader of half-sent bodies must never hold one.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                body = await _read(receive)
        except BrokeOff:
            return
        except TimeoutError:
            await _refuse(scope, send, HTTPStatus.REQUEST_TIMEOUT, "The request came too slowly.")
            return
        if body is None:
            limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE // (1024 * 1024)
            sentence = f"The message is too long: a request may have {limit} MB."
            await _refuse(scope, send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence)
            return
        await self._app(scope, _replay(body, receive), send)


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when it is too large. Raises BrokeOff."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BrokeOff
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replay() -> dict[str, object]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(scope: Scope, send: Send, status: HTTPStatus, sentence: str) -> None:
    import json

    wants_json = b"application/json" in dict(scope["headers"]).get(b"accept", b"")
    code = "too_long" if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else "too_slow"
    text = json.dumps({"error": {"code": code, "message": sentence}}) if wants_json else sentence
    kind = b"application/json" if wants_json else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
