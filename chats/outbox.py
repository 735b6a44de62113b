"""The way out of a socket: bounded, and given up when its reader takes nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

MAX_BYTES = 256 * 1024
MAX_EVENTS = 512
SHORT_BYTES = 256
UNDRAINED_SECONDS = 30.0


class TooSlow(Exception):
    """The reader has not taken what was sent for it for UNDRAINED_SECONDS."""


class Outbox:
    """Frames on their way to one socket; when it is full its writers wait.

    A writer that waited reads on in the log where it was: nothing is lost or kept twice.
    """

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._frames: list[tuple[str, int]] = []  # a deque takes 0.7 KB, empty too
        self._bytes = 0
        self._change = asyncio.Condition()

    async def put(self, frame: dict[str, Any]) -> None:
        """Queue a frame, once there is room. Raises TooSlow."""
        text = json.dumps(frame, ensure_ascii=False, separators=(",", ":"), default=str)
        size = len(text.encode(errors="replace"))
        async with self._change:
            await self._within_patience(self._change.wait_for(lambda: self._has_room(size)))
            self._frames.append((text, size))
            self._bytes += size
            self._change.notify_all()

    async def put_if_empty(self, frame: dict[str, Any]) -> None:
        """Never waits for room: where frames are on their way, one more says nothing new."""
        async with self._change:
            is_empty = not self._frames
        if is_empty:
            await self.put(frame)

    async def put_if_room(self, frame: dict[str, Any]) -> None:
        """The same for what is new and short: only a reader that takes nothing does not hear it."""
        async with self._change:
            is_full = not self._has_room(SHORT_BYTES)
        if not is_full:
            await self.put(frame)

    def _has_room(self, size: int) -> bool:
        fits = self._bytes + size <= MAX_BYTES and len(self._frames) < MAX_EVENTS
        return fits or not self._frames

    async def empty(self) -> None:
        """Wait until everything queued was handed over. Raises TooSlow."""
        async with self._change:
            await self._within_patience(self._change.wait_for(lambda: not self._frames))

    async def run(self) -> None:
        """Hand frames to the socket until cancelled. Raises TooSlow."""
        while True:
            async with self._change:
                await self._change.wait_for(lambda: bool(self._frames))
                text, size = self._frames[0]
            await self._within_patience(self._send(text))
            async with self._change:
                del self._frames[0]
                self._bytes -= size
                self._change.notify_all()

    async def _within_patience(self, waiting: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(UNDRAINED_SECONDS):
                await waiting
        except TimeoutError as error:
            raise TooSlow from error
