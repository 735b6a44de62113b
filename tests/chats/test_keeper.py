"""What is done for all sockets of a process together: who may stay, and signs of life."""

import asyncio
import itertools
import threading

import pytest
from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session

from accounts.models import User
from chats import keeper
from chats.outbox import Outbox
from chats.sessions import standings
from tests.chats.test_socket import (
    _close_connection,  # noqa: F401 - for these tests too
    next_frame,
    next_of,
    page,
    send,
)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def _quick_checks(monkeypatch):
    monkeypatch.setattr(keeper, "SESSION_CHECK_SECONDS", 0.1)


def log_out(user):
    Session.objects.all().delete()


def disable(user):
    User.objects.update(is_active=False)


def change_password(user):
    user.set_password("another long password")
    user.save()


@pytest.mark.parametrize("ending", [log_out, disable, change_password])
@pytest.mark.usefixtures("_quick_checks")
async def test_a_session_that_ends_closes_its_sockets(alice, ending):
    async with page(alice) as socket:
        await sync_to_async(ending)(alice)
        assert await next_frame(socket) == 4401


@pytest.mark.usefixtures("_quick_checks")
async def test_only_the_sockets_of_the_session_that_ended_are_closed(alice, bob):
    async with page(alice) as hers, page(alice) as hers_too, page(bob) as his:
        await sync_to_async(disable_one)(alice)
        assert await next_of(hers, "nothing") == 4401
        assert await next_of(hers_too, "nothing") == 4401
        await asyncio.sleep(0.3)
        await send(his, type="ping")
        assert (await next_of(his, "pong"))["type"] == "pong"


def disable_one(user):
    User.objects.filter(pk=user.pk).update(is_active=False)


@pytest.mark.usefixtures("_quick_checks")
async def test_a_session_that_only_changed_keeps_its_sockets(alice):
    async with page(alice) as socket:
        await sync_to_async(write_something)()
        await asyncio.sleep(0.3)
        await send(socket, type="ping")
        assert (await next_of(socket, "pong"))["type"] == "pong"
        await sync_to_async(log_out)(alice)
        assert await next_of(socket, "nothing") == 4401


def write_something():
    for session in Session.objects.all():
        store = SessionStore(session.session_key)
        store["seen"] = "something"
        store.save()


async def test_heartbeats_come_unasked(alice, monkeypatch):
    monkeypatch.setattr(keeper, "HEARTBEAT_SECONDS", 0.05)
    async with page(alice) as socket:
        assert await next_of(socket, "pong") == {"type": "pong"}
        assert await next_of(socket, "pong") == {"type": "pong"}


@pytest.mark.usefixtures("_quick_checks")
async def test_pages_are_told_that_the_database_is_away_and_that_it_is_back(alice, monkeypatch):
    is_back = threading.Event()

    def wait_for_it(keys):
        is_back.wait(20)
        return standings(keys)

    monkeypatch.setattr(keeper, "AWAY_SECONDS", 0.2)
    monkeypatch.setattr(keeper, "standings", wait_for_it)
    async with page(alice) as socket:
        assert await next_of(socket, "pong") == {"type": "pong", "away": True}
        await send(socket, type="ping")
        assert await next_of(socket, "pong") == {"type": "pong", "away": True}
        is_back.set()
        assert await next_of(socket, "pong") == {"type": "pong"}


async def test_who_has_frames_on_their_way_is_told_too_that_the_database_is_away():
    sent: list[str] = []

    class Socket:
        beaten_at = 0.0

    async def send(text):
        sent.append(text)

    kept, socket = keeper.Keeper(), Socket()
    socket.outbox = Outbox(send)  # type: ignore[attr-defined]
    kept._sockets.add(socket)  # type: ignore[arg-type]
    await socket.outbox.put({"type": "delta"})  # type: ignore[attr-defined]
    await kept._tell(is_away=True)
    await kept._tell(is_away=False)
    writing = asyncio.create_task(socket.outbox.run())  # type: ignore[attr-defined]
    await asyncio.wait_for(socket.outbox.empty(), 5)  # type: ignore[attr-defined]
    writing.cancel()
    assert sent == ['{"type":"delta"}', '{"type":"pong","away":true}', '{"type":"pong"}']


async def test_signs_of_life_for_thousands_hold_nobody_up():
    class Outbox:
        async def put_if_empty(self, frame):
            sent.append(frame)

    class Socket:
        outbox, beaten_at = Outbox(), 0.0

    sent: list[object] = []
    turns: list[int] = []
    kept = keeper.Keeper()
    kept._sockets.update(Socket() for _ in range(1000))  # type: ignore[misc]
    beat = asyncio.create_task(kept._beat())
    while not beat.done():
        turns.append(len(sent))
        await asyncio.sleep(0)
    assert len(sent) == 1000
    assert max(b - a for a, b in itertools.pairwise(turns)) <= 64


async def test_one_person_has_so_many_pages_open_and_others_theirs(alice, bob, settings):
    settings.MAX_SOCKETS_EACH = 2
    async with page(alice) as first, page(alice), page(bob):
        async with page(alice, greeted=False) as third:
            assert await next_frame(third) == 4429
        await first.disconnect()
        async with page(alice) as again:
            await send(again, type="ping")
            assert (await next_of(again, "pong"))["type"] == "pong"


def test_who_asks_without_end_waits_and_nobody_else_does(alice, bob, settings, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("chats.keeper.time.monotonic", lambda: now)
    kept = keeper.Keeper()
    pauses = [kept.pause_for(alice) for _ in range(keeper.FRAMES_TOGETHER + 100)]
    assert pauses[: keeper.FRAMES_TOGETHER] == [0.0] * keeper.FRAMES_TOGETHER
    assert pauses[-1] == pytest.approx(100 / keeper.FRAMES_A_SECOND)
    assert kept.pause_for(bob) == 0.0
    now += 60
    assert kept.pause_for(alice) == 0.0, "all is forgotten in the end"
    settings.MAX_SOCKETS_EACH = 0
    assert {kept.pause_for(alice) for _ in range(1000)} == {0.0}


async def test_the_frames_of_a_person_who_asks_too_much_come_later(alice, bob, monkeypatch):
    monkeypatch.setattr(keeper, "FRAMES_TOGETHER", 2)
    monkeypatch.setattr(keeper, "FRAMES_A_SECOND", 5)
    async with page(alice) as mine, page(bob) as theirs:
        started = asyncio.get_running_loop().time()
        for _ in range(5):
            await send(mine, type="ping")
        for _ in range(5):
            assert (await next_of(mine, "pong"))["type"] == "pong"
        assert asyncio.get_running_loop().time() - started > 0.5  # three wait a fifth of a second
        await send(theirs, type="ping")
        assert (await next_of(theirs, "pong"))["type"] == "pong"
