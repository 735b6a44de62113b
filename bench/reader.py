"""Reads an answer over the socket as the browser does, and checks every frame's place."""

import asyncio
import contextlib
import random
import time
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from bench.site import Person, watch


def pause_after(failures: int) -> float:
    """Seconds until a page that lost its line tries again: as static/js/pause.js has it."""
    return random.uniform(0.1, min(30.0, 0.25 * 2 ** min(failures, 8)))


class Reader:
    """An answer so far, across reconnects; an assertion fails when frames do not fit."""

    def __init__(self, person: Person, generation: str) -> None:
        self.person, self.generation = person, generation
        self.text, self.epoch, self.seq, self.status = "", 0, 0, ""
        self.resets = 0
        self.reset_at = 0.0  # when text was taken back the last time
        self.longest_pause = 0.0  # seconds between two pieces of text
        self.has_left = False
        self._moved_at = 0.0
        self.line: ClientConnection | None = None

    def break_line(self) -> None:
        """Without a word to the other side, as when a cable is pulled."""
        assert self.line
        self.line.transport.abort()

    async def read(self, until: int = 10**9, url: str = "") -> None:
        """On one socket, until there are so many characters or the answer ends."""
        if self.has_left:
            self._moved_at = 0.0  # its own absence is no pause of the answer's
        self.has_left = False
        async with self.person.socket(url) as self.line:
            async for frame in watch(self.line, self.generation, self.epoch, self.seq):
                self.take(frame)
                if len(self.text) >= until:
                    self.has_left = True
                    return

    async def finish(self, url: str = "", seconds: float = 120) -> None:
        """Reconnect as often as it takes."""
        failures = 0
        async with asyncio.timeout(seconds):
            while not self.status:
                before = self._moved_at
                with contextlib.suppress(OSError, WebSocketException):
                    await self.read(url=url)
                failures = failures + 1 if self._moved_at == before else 0
                if not self.status:
                    await asyncio.sleep(pause_after(failures))

    def take(self, frame: dict[str, Any]) -> None:
        assert not self.status, f"{frame['type']} after the end"
        if frame["type"] == "delta":
            self._add(frame)
        elif frame["type"] == "reset":
            assert frame["epoch"] > self.epoch, "back in an epoch that is over"
            if self.text:
                self.resets, self.reset_at = self.resets + 1, time.monotonic()
            self.epoch, self.seq, self.text = frame["epoch"], 0, self.text[: frame["to"]]
        elif frame["type"] == "end":
            here = (self.epoch, self.seq + 1)
            assert (frame["epoch"], frame["seq"]) == here, f"an end at {frame['seq']}, at {here}"
            self.status = frame["status"]
            self._moved()

    def _add(self, frame: dict[str, Any]) -> None:
        here = (self.epoch, self.seq + 1, len(self.text))
        assert (frame["epoch"], frame["seq"], frame["offset"]) == here, f"{frame} at {here}"
        self.seq, self.text = frame["seq"], self.text + frame["text"]
        self._moved()

    def _moved(self) -> None:
        now = time.monotonic()
        if self._moved_at:
            self.longest_pause = max(self.longest_pause, now - self._moved_at)
        self._moved_at = now
