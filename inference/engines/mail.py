"""From the decode thread to the event loops that read the answers."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from inference.engines.base import Delta

Item = Delta | Exception


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Where a run's deltas go: a queue of the event loop that reads it."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Item]

    @classmethod
    def of_running_loop(cls) -> "Mailbox":
        return cls(asyncio.get_running_loop(), asyncio.Queue())


class Outbox:
    """Hands a step's deltas to each event loop in one go: every call into one is a wake-up."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[tuple[Mailbox, Item]]]
        self._waiting = defaultdict(list)

    def add(self, box: Mailbox, item: Item) -> None:
        self._waiting[box.loop].append((box, item))

    def flush(self) -> None:
        while self._waiting:
            loop, items = self._waiting.popitem()
            try:
                loop.call_soon_threadsafe(_put, items)
            except RuntimeError:  # the loop is closed: nobody is left to read
                continue


def _put(items: list[tuple[Mailbox, Item]]) -> None:
    for box, item in items:
        box.queue.put_nowait(item)
