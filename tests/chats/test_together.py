"""What is asked for many readers at once, and what is read in parts."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.sessions.models import Session

from accounts.models import User
from chats import tail
from chats.looks import MAX_EVENTS, Look, look
from chats.models import Chat
from chats.sessions import NOTHING, people_of
from inference import redis_server
from inference.database import in_database
from inference.live_scripts import READ
from inference.models import Release
from tests.chats.test_socket import cookie_of
from tests.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


def test_everybody_is_told_who_they_are_and_nobody_who_another_is(alice: User, bob: User):
    mine, theirs, gone = cookie_of(alice), cookie_of(bob), cookie_of(bob)
    Session.objects.filter(session_key=gone).delete()
    keys = [theirs, gone, mine, "", "../../etc", mine, "a" * 32]
    people = [person for person, _ in people_of(keys)]
    assert people == [bob, None, alice, None, None, alice, None]
    standing = [standing for _, standing in people_of(keys)]
    assert standing[2] == standing[5] != standing[0]
    assert {standing[n] for n in (1, 3, 4, 6)} == {NOTHING}


def test_one_who_is_disabled_is_nobody_and_harms_no_other(alice: User, bob: User):
    keys = [cookie_of(alice), cookie_of(bob)]
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert [person for person, _ in people_of(keys)] == [None, bob]


def test_scripts_of_which_one_fails_are_all_in_doubt(valkey: Valkey):
    server = redis_server.server()
    server.client.set("text", "not a log")
    with pytest.raises(redis_server.Away):
        server.run_all(READ, [("nothing", (0, 0, 9)), ("text", (0, 0, 9))])
    assert server.is_away


def test_a_script_that_is_unknown_is_loaded_once_for_all(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    server = redis_server.server()
    server.client.script_flush()
    load, loaded = server.client.script_load, []

    def noted(script: str) -> str:
        loaded.append(script)
        return str(load(script))

    monkeypatch.setattr(server.client, "script_load", noted)
    assert server.run_all(READ, [("nothing", (0, 0, 9))] * 3) == [None] * 3
    assert loaded == [READ]


@pytest.mark.parametrize("more", [0, 1, 300])
@pytest.mark.parametrize("with_redis", [False, True])
async def test_an_answer_in_more_pieces_than_one_look_takes_is_read_whole_and_ended_once(
    alice: User, release: Release, pen, request, more: int, with_redis: bool
):
    if with_redis:
        request.getfixturevalue("valkey")
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    assert answer.generation_id
    hand = await in_database(pen, answer)
    pieces = [f"{number} " for number in range(MAX_EVENTS + more)]
    await in_database(hand.write, *pieces)
    read = []
    async for frame in tail.follow_generation(answer.generation_id, 0, 0):
        if frame["type"] == "delta":
            read.append(frame["text"])
        if len(read) == len(pieces) and frame["type"] == "delta":
            await in_database(hand.end)
    assert read == pieces
    assert frame["type"] == "end"


async def test_text_that_comes_without_a_ring_is_looked_for_four_times_a_second(
    alice: User, release: Release, pen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """As with a full Redis: it answers readers, and nobody rings."""
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    writer = await in_database(pen, answer)
    monkeypatch.setattr("inference.tokenlog.doorbell.ring", lambda topic: None)

    async def write() -> None:
        for number in range(60):
            await in_database(writer.write, f"{number} ")
            await asyncio.sleep(0.05)
        await in_database(writer.end)

    assert answer.generation_id
    writing, looks = asyncio.create_task(write()), set()
    async for frame in tail.follow_generation(answer.generation_id, 0, 0):
        if frame["type"] == "delta":
            looks.add(time.monotonic() // 0.1)
    await writing
    assert len(looks) >= 6  # generous: twelve in three seconds; one a second would be three


async def test_what_comes_while_a_reader_looks_is_read_at_once_and_not_at_the_next_poll(
    alice: User, release: Release, pen: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    writer = await in_database(pen, answer)
    looked, go_on = threading.Event(), threading.Event()

    def slow(*where: Any) -> Look:
        found = look(*where)
        looked.set()
        go_on.wait(20)
        return found

    monkeypatch.setattr(tail, "POLL_SECONDS", 60)
    monkeypatch.setattr(tail, "look", slow)
    assert answer.generation_id
    frames = tail.follow_generation(answer.generation_id, 0, 0)
    first = asyncio.ensure_future(anext(frames))
    await asyncio.to_thread(looked.wait, 20)
    await in_database(writer.write, "Hel")
    await asyncio.sleep(0.1)  # the ring has come, and the look is at work still
    go_on.set()
    async with asyncio.timeout(10):
        assert (await first)["status"] == "running"
        assert (await anext(frames))["text"] == "Hel"


async def test_first_words_wait_for_no_database_that_is_slow(
    alice: User, release: Release, pen: Callable[..., Any], valkey: Valkey,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    writer = await in_database(pen, answer)
    over = threading.Event()
    monkeypatch.setattr(tail, "look", lambda *where: over.wait(20) and Look())
    assert answer.generation_id
    frames = tail.follow_generation(answer.generation_id, 0, 0)
    first = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0.2)  # it looks
    await in_database(writer.write, "Hel", "lo")
    found = [await first, await anext(frames)]
    assert [frame.get("status") or frame["text"] for frame in found] == ["running", "Hel"]
    over.set()
    assert (await anext(frames))["text"] == "lo"
