"""A stand-in for a model's server: it says over HTTP what a test tells it to, byte for byte.

It is no server of anything. What real servers do is tested with real ones.
"""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HANG, BREAK = "hang", "break"  # instead of bytes: say nothing more; cut the line


@dataclass
class Reply:
    body: list[bytes | str] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def said(value: Any, status: int = 200, **headers: str) -> Reply:
    """A whole answer in JSON; header names with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([json.dumps(value).encode()], status, named)


def streamed(*events: Any, end: str | None = None) -> Reply:
    """Events, each a value for JSON or bytes as they are, then `[DONE]` or `end`."""
    lines = [e if isinstance(e, bytes) else b"data: " + json.dumps(e).encode() for e in events]
    return Reply([*(line + b"\n\n" for line in lines), end or b"data: [DONE]\n\n"])


class StandIn:
    """answers: what to reply by path, a Reply or a function from the request's JSON to one."""

    def __init__(self, answers: dict[str, Reply | Callable[[Any], Reply]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        self.headers: list[str] = []
        self.gone = asyncio.Event()  # somebody closed a connection that was being answered

    async def __aenter__(self) -> "StandIn":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    def bodies(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: *(\d+)", head.lower())
            body = json.loads(await reader.readexactly(int(length[1])) if length else b"null")
            path = head.split(" ")[1]
            self.asked.append((path, body))
            self.headers.append(head)
            answer = self.answers.get(path, Reply(status=404))
            await self._reply(answer(body) if callable(answer) else answer, reader, writer)
        writer.close()

    async def _reply(
        self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lines = [f"HTTP/1.1 {reply.status} -", "connection: close"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for part in reply.body:
            if part == HANG:
                await reader.read()
                self.gone.set()
            elif part == BREAK:
                writer.transport.abort()
            else:
                assert isinstance(part, bytes)
                writer.write(part)
                await writer.drain()
