"""A bad line between any two parts: late, torn into pieces, cut, half-open. All on loopback."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
CUT_AFTER = (200, 6000)  # bytes of answer that a connection gets before it is cut


class Proxy:
    """Forwards to `port`, or to the Unix socket `path`; change its attributes while it runs.

    `delay` and `jitter` are seconds for each piece, each way; `slice` bytes a piece may have at
    most; `cuts` is the share of connections that are cut in the middle of an answer.
    """

    def __init__(self, port: int = 0, path: str = "", seed: int = 0) -> None:
        self.delay = self.jitter = self.cuts = 0.0
        self.slice = 0
        self.is_hole = False  # takes every byte and passes none on: nobody is told
        self.keeps_answers = False  # requests arrive; the line breaks before their answers do
        self._port, self._path = port, path
        self._chance = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Every connection, now."""
        for writer in tuple(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if self._path:
                there = await asyncio.open_unix_connection(self._path)
            else:
                there = await asyncio.open_connection("127.0.0.1", self._port)
            self._open |= {writer, there[1]}
            await asyncio.gather(self._requests(reader, there[1]), self._answers(there[0], writer))
        self._open -= {writer, there[1]}

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await self._heard(reader, writer):
            await self._pass_on(data, writer)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_cut = self._chance.random() < self.cuts
        left = self._chance.randint(*CUT_AFTER) if is_cut else None
        while data := await self._heard(reader, writer):
            if self.keeps_answers:
                writer.transport.abort()
                return
            await self._pass_on(data[:left], writer)
            if left is not None and (left := left - len(data)) <= 0:
                writer.transport.abort()
                return

    async def _heard(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """What one side said; when it has nothing more to say, the other is told."""
        with contextlib.suppress(OSError):
            if data := await reader.read(1 << 16):
                return data
        writer.close()
        return b""

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        size = self.slice or len(data)
        while data and not self.is_hole:
            piece = data[: self._chance.randint(1, size) if self.slice else size]
            data = data[len(piece) :]
            if late := self.delay + self._chance.uniform(0, self.jitter):
                await asyncio.sleep(late)
            writer.write(piece)
            await writer.drain()
