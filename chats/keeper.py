"""Looks after all sockets of an event loop together: who may stay, and a sign of life.

A task, a timer and two queries for each socket would cost more than all that the sockets do.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from django.conf import settings

from accounts.models import User
from chats import tail
from chats.outbox import Outbox
from chats.sessions import NOTHING, Standing, person_of, standings

logger = logging.getLogger(__name__)
SESSION_CHECK_SECONDS = 4.0
HEARTBEAT_SECONDS = 9.0  # a page that hears nothing for twice as long reconnects
AWAY_SECONDS = 5.0  # without a word from the database, until the pages are told
LOOKS = 16  # in that time: a part of the sockets each, so that they do not all come at once
BATCH = 500  # sessions in one query
IN_ONE_TURN = 32  # of the event loop
FRAMES_A_SECOND, FRAMES_TOGETHER = 20, 400  # of one person; each is a look at the database
T = TypeVar("T")


class Kept(Protocol):
    session_key: str
    user: User
    standing: Standing
    outbox: Outbox
    is_closing: bool
    checked_at: float
    beaten_at: float

    async def leave(self) -> None:
        """The session is over."""


class Keeper:
    def __init__(self) -> None:
        self._sockets: set[Kept] = set()
        self._of: Counter[int] = Counter()  # by person
        self._tasks: list[asyncio.Task[None]] = []
        self._paid_until: dict[int, float] = {}  # by person: when all they asked was their due
        self._is_away = False  # the database, as the pages were told last

    def has_room_for(self, person: User) -> bool:
        """Each may have a few dozen pages open: their sockets take what others need."""
        most = settings.MAX_SOCKETS_EACH
        return not most or self._of[person.pk] < most

    def pause_for(self, person: User) -> float:
        """Seconds that a person's next frame waits: who asks without end waits for themselves."""
        if not settings.MAX_SOCKETS_EACH:
            return 0.0
        now = time.monotonic()
        saved_up = now - FRAMES_TOGETHER / FRAMES_A_SECOND
        paid = max(self._paid_until.get(person.pk, saved_up), saved_up) + 1 / FRAMES_A_SECOND
        self._paid_until[person.pk] = paid
        return max(0.0, paid - now)

    def add(self, socket: Kept) -> None:
        self._of[socket.user.pk] += 1
        socket.checked_at = socket.beaten_at = time.monotonic()
        self._sockets.add(socket)
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(_again(self._check, lambda: SESSION_CHECK_SECONDS / LOOKS)),
                loop.create_task(_again(self._beat, lambda: HEARTBEAT_SECONDS / LOOKS)),
            ]

    def remove(self, socket: Kept) -> None:
        if socket not in self._sockets:
            return
        self._sockets.discard(socket)
        self._of[socket.user.pk] -= 1
        if not self._of[socket.user.pk]:
            del self._of[socket.user.pk]
        if not self._sockets:
            for task in self._tasks:
                task.cancel()
            self._tasks = []
            self._is_away = False

    async def _beat(self) -> None:
        now = time.monotonic()
        due = [one for one in self._sockets if one.beaten_at + HEARTBEAT_SECONDS <= now]
        for number, socket in enumerate(due, 1):
            socket.beaten_at = now
            await socket.outbox.put_if_empty(self.sign_of_life())
            await _let_others(number)

    def sign_of_life(self) -> dict[str, object]:
        """Of the server, and word of a database that is away: what stands still goes on later."""
        return {"type": "pong", "away": True} if self._is_away else {"type": "pong"}

    async def _check(self) -> None:
        now = time.monotonic()
        saved_up = now - FRAMES_TOGETHER / FRAMES_A_SECOND
        self._paid_until = {pk: at for pk, at in self._paid_until.items() if at > saved_up}
        open_ones = [one for one in self._sockets if not one.is_closing]
        due = [one for one in open_ones if one.checked_at + SESSION_CHECK_SECONDS <= now]
        for some in _batches(due):
            people = {one.session_key: one.user.pk for one in some}
            found = await self._ask(standings, people)
            changed: dict[str, list[Kept]] = defaultdict(list)
            for socket in some:
                socket.checked_at = now
                if found.get(socket.session_key) != socket.standing:
                    changed[socket.session_key].append(socket)
            for key, sockets in changed.items():
                await self._look_closer(key, sockets, key in found)

    async def _look_closer(self, key: str, sockets: list[Kept], is_there: bool) -> None:
        """What a session rests upon has changed: that is no reason to go by itself.

        Once for all its sockets: with thousands of one person, others must not have to wait.
        """
        person, standing = await self._ask(person_of, key) if is_there else (None, NOTHING)
        for socket in sockets:
            if person is not None and person == socket.user:
                socket.standing = standing
                continue
            # Closing waits for the other side, and the others must not.
            task = asyncio.create_task(socket.leave())
            _leaving.add(task)
            task.add_done_callback(_leaving.discard)

    async def _ask(self, look: Callable[..., T], *args: Any) -> T:
        asking = asyncio.create_task(tail.patiently(look, *args))
        try:
            while not (await asyncio.wait((asking,), timeout=AWAY_SECONDS))[0]:
                await self._tell(is_away=True)
            await self._tell(is_away=False)
            return await asking
        finally:
            asking.cancel()

    async def _tell(self, *, is_away: bool) -> None:
        if is_away == self._is_away:
            return
        self._is_away = is_away
        for number, socket in enumerate(list(self._sockets), 1):
            await socket.outbox.put_if_room(self.sign_of_life())
            await _let_others(number)


async def _let_others(number: int) -> None:
    """A thousand sockets that came together would hold all up together."""
    if number % IN_ONE_TURN == 0:
        await asyncio.sleep(0)


async def _again(work: Callable[[], Awaitable[None]], seconds: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(seconds())
        try:
            await work()
        except Exception:
            logger.exception("A look at the open sockets failed")


def _batches(sockets: Collection[Kept]) -> Iterator[list[Kept]]:
    listed = list(sockets)
    for start in range(0, len(listed), BATCH):
        yield listed[start : start + BATCH]


_leaving: set[asyncio.Task[None]] = set()
_by_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, Keeper]" = WeakKeyDictionary()


def keeper() -> Keeper:
    """The one of this event loop."""
    return _by_loop.setdefault(asyncio.get_running_loop(), Keeper())
