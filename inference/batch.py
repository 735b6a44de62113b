"""The same question of many tasks at the same time, asked once for all of them.

A worker's answers append at every turn of its event loop, a process with open pages reads as
often, and after a break of the line everybody comes back at once. A thread and a round trip for
each cost five to ten times as much as the work itself.
"""

import asyncio
import contextlib
import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from inference import redis_server
from inference.database import in_live_log
from inference.redis_server import Away

MOST = 500  # questions at once, so that nobody waits for thousands of others

Q = TypeVar("Q")
A = TypeVar("A")


class Batch(Generic[Q, A]):
    """What is asked while an answer is under way goes with the next one, in order.

    `answer`: one answer for each question, in their order; what it raises all of them are told.
    """

    def __init__(
        self, answer: Callable[[list[Q]], Awaitable[Sequence[A]]], most: int = MOST
    ) -> None:
        self._answer = answer
        self._most = most
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._waiting.append((question, answer))
        if self._task is None:
            self._task = loop.create_task(self._work())
        return await answer

    def ask_aside(self, question: Q) -> None:
        """Without waiting for the answer, and only if nothing is asked already."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._waiting.append((question, loop.create_future()))
            self._task = loop.create_task(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._ask([one for one in some if not one[1].done()])
        finally:
            self._task = None

    async def _ask(self, some: list[tuple[Q, asyncio.Future[A]]]) -> None:
        if not some:
            return
        try:
            answers = await self._answer([question for question, _ in some])
            for (_, future), answer in zip(some, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except Exception as error:
            for _, future in some:
                if not future.done():
                    future.set_exception(_own(error))


def _own(error: Exception) -> Exception:
    """A copy for one task: a traceback grows with every place that passes it on."""
    try:
        return copy.copy(error)
    except TypeError:  # made of other arguments than it keeps
        return error


_by_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, dict[object, Any]]" = WeakKeyDictionary()


def batch(
    name: object, answer: Callable[[list[Q]], Awaitable[Sequence[A]]], most: int = MOST
) -> Batch[Q, A]:
    """The one of that name of this event loop."""
    batches = _by_loop.setdefault(asyncio.get_running_loop(), {})
    if name not in batches:
        batches[name] = Batch(answer, most)
    found: Batch[Q, A] = batches[name]
    return found


Call = tuple[str, tuple[Any, ...]]


async def run_script(script: str, key: str, *args: Any) -> Any:
    """Server.run, together with what others run just now. Raises Away.

    While Redis is away somebody has to try, which takes a second when it is frozen; nobody waits
    for that.
    """
    server = redis_server.server()
    if server.is_away:
        if server.may_be_tried:
            batch("look", _look).ask_aside(server)
        raise Away("It did not answer a moment ago.")

    async def answer(calls: list[Call]) -> list[Any]:
        return await in_live_log(server.run_all, script, calls)

    return await batch(script, answer).ask((key, args))


async def _look(servers: list[redis_server.Server]) -> list[None]:
    with contextlib.suppress(Away):
        await in_live_log(servers[0].look)
    return [None] * len(servers)
