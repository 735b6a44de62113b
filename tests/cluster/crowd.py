"""People who ask all the time while something is done to the cluster."""

import asyncio
import time
from dataclasses import dataclass, field

from bench.reader import Reader
from bench.site import Person


@dataclass
class Crowd:
    """What they met; `failed` should stay empty."""

    sends: list[float] = field(default_factory=list)  # seconds each took
    read: int = 0  # answers
    visits: int = 0
    failed: list[str] = field(default_factory=list)
    has_to_end: bool = False
    _unread: list[tuple[Reader, str]] = field(default_factory=list)

    async def keep_sending(self, person: Person) -> None:
        """Without waiting for the answers, so that there is a send at every moment."""
        while not self.has_to_end:
            await self._ask(person, 10)
            await asyncio.sleep(0.2)

    async def keep_reading(self, person: Person) -> None:
        while not self.has_to_end:
            await self._ask(person, 40)
            await self.read_the_rest(person)

    async def keep_visiting(self, person: Person) -> None:
        """Loads the page again and again."""
        while not self.has_to_end:
            answer = await person.http.get("/")
            self.visits += 1
            if answer.status_code != 200:
                self.failed.append(f"a page: {answer.status_code}")
            await asyncio.sleep(0.1)

    async def read_the_rest(self, person: Person | None = None) -> None:
        """Of all, or of one: what was not read yet."""
        for reader, text in list(self._unread):
            if person in (None, reader.person):
                self._unread.remove((reader, text))
                await reader.finish()
                if (reader.text, reader.status, reader.resets) != (text, "done", 0):
                    self.failed.append(f"{reader.status}: {reader.text!r}")
                self.read += 1

    async def _ask(self, person: Person, count: int) -> None:
        started = time.monotonic()
        try:
            reader = Reader(person, await person.ask(f"count {count} pace=80"))
            self._unread.append((reader, " ".join(map(str, range(1, count + 1)))))
        except AssertionError as error:
            self.failed.append(str(error))
        self.sends.append(time.monotonic() - started)
