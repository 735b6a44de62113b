"""Following a run, a chat or a person's list: the frames that a reader is due."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

from django.db import DatabaseError, InterfaceError

from chats.looks import MAX_EVENTS, Frame, Look, Place, ends, look
from chats.models import Chat
from inference import doorbell
from inference.batch import batch
from inference.database import in_database, log_failure
from inference.models import Generation
from inference.tokenlog import Event

T = TypeVar("T")
logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0  # what a lost ring costs
UNRUNG_SECONDS = 0.25
MOMENT_SECONDS = 0.02
CHAT_POLL_SECONDS = 4.0
LIST_PAUSE_SECONDS = 0.25
LIST_POLL_SECONDS = 3600
DATABASE_PAUSE_SECONDS = 1.0
ENDS_TOGETHER = 32  # so that the first of very many ends is not shown with the last


async def follow_generation(pk: UUID, epoch: int, after: int) -> AsyncIterator[Frame]:
    """Deltas after (epoch, after), states between them, and exactly one end, last."""
    frame_of_state: Frame | None = None
    rung = False
    async with doorbell.subscribe(f"gen:{pk}") as bell:
        while True:
            found = await _glance(pk, epoch, after, rung)
            if found is None:
                found = await _look_and_listen(bell, rung, pk, epoch, after)
            if found.state and found.state != frame_of_state:
                frame_of_state = found.state
                yield {"type": "state", "generation": pk, **found.state}
            for event in found.events:
                if event.epoch != epoch:
                    epoch = event.epoch
                    yield {"type": "reset", "generation": pk, "epoch": epoch, "to": event.offset}
                after = event.seq
                yield _delta(pk, event)
            if found.end:
                yield found.end
                return
            # Before it is read whole, no ring is due. Where text came without one, they are lost.
            pause = UNRUNG_SECONDS if found.events and not rung else POLL_SECONDS
            rung = found.has_more or await bell.wait(doorbell.patience(pause))


async def _glance(pk: UUID, epoch: int, after: int, rung: bool) -> Look | None:
    """From the newest part of a live log; None when that does not tell enough."""
    events = await Generation(pk=pk).log.news(epoch, after, MAX_EVENTS)
    if events:
        return Look.at_text(events)
    # A ring whose event was read with the one before it says nothing of the run's row.
    return Look() if rung and events is not None else None


async def _look_and_listen(
    bell: doorbell.Bell, rung: bool, pk: UUID, epoch: int, after: int
) -> Look:
    """What the database says, or the live log if it has news before that.

    Of a new run it is asked a moment later: its first words are most likely on their way, and
    several round trips would hold them up.
    """
    is_live = Generation(pk=pk).log.is_live
    read = _look_among_others if is_live and rung else _look_alone
    moment = MOMENT_SECONDS if is_live and after == 0 else 0
    looking = asyncio.create_task(_after(moment, read, pk, epoch, after))
    rang, ringing = False, None
    try:
        while not looking.done():
            ringing = asyncio.create_task(bell.wait(POLL_SECONDS))
            await asyncio.wait((looking, ringing), return_when=asyncio.FIRST_COMPLETED)
            rang = rang or (ringing.done() and ringing.result())
            ringing.cancel()
            news = None if looking.done() else await _glance(pk, epoch, after, rung=False)
            if news and news.events:
                return news
        if rang:
            bell.ring()  # for what came after the look
        return await looking
    finally:
        looking.cancel()
        if ringing:
            ringing.cancel()


async def _after(seconds: float, read: Callable[..., Awaitable[Look]], *where: Any) -> Look:
    await asyncio.sleep(seconds)
    return await read(*where)


async def _look_among_others(pk: UUID, epoch: int, after: int) -> Look:
    """A ring without news from a live log is most likely its end, and ends come in bursts."""
    found = await batch("ends", _ends, ENDS_TOGETHER).ask((pk, epoch, after))
    return found or await _look_alone(pk, epoch, after)


async def _ends(places: list[Place]) -> list[Look | None]:
    """None: it has not ended, or could not be read with the others."""
    try:
        return await in_database(ends, places)
    except Exception:
        log_failure(logger, "Ends could not be read together; each is read by itself.")
        return [None] * len(places)


async def _look_alone(pk: UUID, epoch: int, after: int) -> Look:
    return await patiently(look, pk, epoch, after)


def _delta(pk: UUID, event: Event) -> Frame:
    frame = {
        "type": "delta",
        "generation": pk,
        "epoch": event.epoch,
        "seq": event.seq,
        "offset": event.offset,
        "text": event.text,
    }
    return frame | {"finish": event.finish} if event.finish else frame


async def follow_chat(user_id: int, pk: UUID, version: int) -> AsyncIterator[Frame]:
    """A frame each time the chat's version is above the last one told."""
    async with doorbell.subscribe(f"chat:{pk}") as bell:
        while True:
            current = await patiently(_version, user_id, pk)
            if current is None:
                return
            if current > version:
                version = current
                yield {"type": "chat", "chat": pk, "version": version}
            await bell.wait(CHAT_POLL_SECONDS)


def _version(user_id: int, pk: UUID) -> int | None:
    # A deletion is told as well: the page then asks for the chat and finds it gone.
    return Chat.objects.filter(user=user_id, pk=pk).values_list("version", flat=True).first()


async def follow_list(user_id: int) -> AsyncIterator[Frame]:
    """A frame a moment after one of the person's chats changed, at most four a second.

    And one at first: what changed between the page and its socket was told to nobody.
    """
    async with doorbell.subscribe(f"user:{user_id}") as bell:
        while True:
            # The page will ask for its list anew: not while a first token is on its way.
            await asyncio.sleep(LIST_PAUSE_SECONDS)
            yield {"type": "chats"}
            while not await bell.wait(LIST_POLL_SECONDS):
                pass


async def patiently(read: Callable[..., T], *args: Any) -> T:
    """Read, and when the database is away keep trying: an open stream outlives that.

    Once more at once: often it was only the connection of this thread that had been ended.
    """
    pause = 0.0
    while True:
        with contextlib.suppress(DatabaseError, InterfaceError):
            return await in_database(read, *args)
        if pause:
            logger.warning("The database did not answer a socket's read; trying again.")
        await asyncio.sleep(pause)
        pause = DATABASE_PAUSE_SECONDS
