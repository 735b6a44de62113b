"""Bodies are read before a thread is spent on them: too large and too slow ones never reach it."""

import asyncio
import json
from typing import Any

import pytest

from chatsite import body
from chatsite.body import WholeBody


async def answer_with_its_body(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


async def ask(*parts: bytes | None, accept: bytes = b"application/json") -> tuple[int, bytes]:
    """Send a body in parts; None waits for ever."""
    waiting = list(parts)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        part = waiting.pop(0)
        if part is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await WholeBody(answer_with_its_body)({"headers": [(b"accept", accept)]}, receive, send)
    return sent[0]["status"], sent[1]["body"]


async def test_a_body_in_parts_arrives_whole():
    assert await ask(b"one ", b"two") == (200, b"one two")


async def test_a_body_that_is_too_large_is_refused_in_the_form_asked_for(settings: Any):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    status, text = await ask(b"x" * 6, b"x" * 6)
    assert (status, json.loads(text)["error"]["code"]) == (413, "too_long")
    assert (await ask(b"x" * 11, accept=b"text/html"))[0] == 413


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "SECONDS", 0.05)
    assert (await ask(b"x", None))[0] == 408
