"""The ends of many answers, read together for those who watch them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.safestring import SafeString

from accounts.models import User
from chats import tail, transcript
from chats.consumers import LAST_LOOK_SECONDS, close_all
from chats.looks import MAX_EVENTS, MAX_HTML_CHARACTERS, SHORT_CHARACTERS, Place, ends, look
from chats.models import Chat
from inference.database import in_database
from inference.models import Chunk, Generation, Release
from tests.chats.test_socket import next_of, page, watch
from tests.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)
Start = Callable[..., UUID]


async def first(count: int, frames: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for frame in frames:
        yield frame
        count -= 1
        if not count:
            return


@pytest.fixture
def start(alice: User, bob: User, release: Release, pen: Callable[..., Any]) -> Start:
    """A run that has written these pieces, and has ended or not."""

    def started(*pieces: str, ended: bool = True) -> UUID:
        answer = Chat.start(bob if "bob" in pieces else alice, "Hi", uuid4())
        hand = pen(answer).write(*pieces)
        if ended:
            hand.end()
        assert answer.generation_id
        return answer.generation_id

    return started


def test_each_is_told_what_a_look_of_its_own_would_tell(start: Start):
    whole, seen, goes_on = start("Hel", "lo"), start("bob", "by"), start("yet", ended=False)
    long, told = start(*(f"{n} " for n in range(MAX_EVENTS + 9))), start("all")
    places = [(whole, 0, 0), (seen, 0, 1), (goes_on, 0, 0), (long, 0, 0), (told, 0, 1)]
    found = ends(places)
    assert found[2] is None, "it has not ended"
    for place, mine in zip(places, found, strict=True):
        assert mine is None or mine == look(*place)
    assert [len(mine.events) for mine in found if mine] == [2, 1, MAX_EVENTS, 0]
    assert [mine.has_more for mine in found if mine] == [False, False, True, False]
    assert found[0]
    assert found[0].end
    assert "Hello" in found[0].end["html"]
    assert found[1]
    assert found[1].end
    assert "bobby" in found[1].end["html"]


def test_two_readers_of_one_answer_are_each_told_what_they_have_not_read(start: Start):
    pk = start(*(f"{n} " for n in range(2 * MAX_EVENTS + 9)))
    last = 2 * MAX_EVENTS + 9
    places = [(pk, 0, 0), (pk, 0, 0), (pk, 0, MAX_EVENTS), (pk, 0, last - 2), (pk, 0, last)]
    told = [[event.seq for event in mine.events] if mine else None for mine in ends(places)]
    assert told == [
        [*range(1, MAX_EVENTS + 1)],
        [*range(1, MAX_EVENTS + 1)],
        [*range(MAX_EVENTS + 1, 2 * MAX_EVENTS + 1)],
        [last - 1, last],
        [],
    ]
    assert [bool(mine and mine.end) for mine in ends(places)] == [False, False, False, True, True]


def test_a_reader_of_an_epoch_that_is_over_is_told_all_of_the_new_one(start: Start):
    pk = start("a", "b")
    Chunk.objects.filter(generation=pk).update(epoch=1)
    Generation.objects.filter(pk=pk).update(epoch=1)
    told = [[event.seq for event in mine.events] for mine in ends([(pk, 0, 2), (pk, 1, 1)]) if mine]
    assert told == [[1, 2], [2]]


def test_one_that_is_gone_or_whose_log_is_keeps_no_other_back(start: Start):
    kept, forgotten = start("a"), start("b")
    Chunk.objects.filter(generation=forgotten).delete()
    gone, mine, rest = ends([(uuid4(), 0, 0), (kept, 0, 0), (forgotten, 0, 0)])
    assert gone is None
    assert mine
    assert mine.end
    assert rest
    assert rest.end
    assert (len(mine.events), len(rest.events)) == (1, 0)
    assert "b" in rest.end["html"]


def test_a_long_answer_lets_no_other_wait_for_its_html(start: Start):
    short, long = start("a"), start("word " * (SHORT_CHARACTERS // 5 + 1))
    mine, other = ends([(short, 0, 0), (long, 0, 0)])
    assert mine is not None
    assert other is None, "it is read by itself"
    whole = look(long, 0, 0).end
    assert whole
    assert "word word" in whole["html"]


def test_nothing_is_made_html_that_no_frame_can_carry(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    def noted(text: str) -> SafeString:
        made.append(text)
        return SafeString(text)

    made: list[str] = []
    monkeypatch.setattr(transcript, "render", noted)
    end = look(start("word " * (MAX_HTML_CHARACTERS // 5 + 1)), 0, 0).end
    assert end
    assert end["html"] is None
    assert made == []


def test_many_take_as_many_queries_as_one(start: Start):
    places: list[Place] = [(start(f"{n}"), 0, 0) for n in range(6)]
    counts = []
    for some in (places[:1], places):
        with CaptureQueriesContext(
            connection,
        ) as asked:
            ends(some)
        counts.append(len(asked))
    assert counts[0] == counts[1]


async def test_with_the_last_piece_a_reader_is_told_that_it_is_the_last(
    alice: User, release: Release, valkey: Valkey, pen: Callable[..., Any]
):
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    hand = await in_database(pen, answer)
    await in_database(hand.write, "Hel")
    last = partial(hand.run.log.append, hand.run.fence, 2, "lo", [], finish="length")
    await in_database(last)
    assert answer.generation_id
    frames = tail.follow_generation(answer.generation_id, 0, 0)
    told = [frame async for frame in first(3, frames)]
    assert [(frame["type"], frame.get("finish")) for frame in told] == [
        ("state", None),
        ("delta", None),
        ("delta", "length"),
    ]
    (row,) = await in_database(transcript.rows_of, [answer])
    assert (row.text, row.finish, row.state) == ("Hello", "length", "running")


async def test_a_process_that_stops_shows_an_end_that_is_just_due(
    alice: User, release: Release, pen: Callable[..., Any]
):
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    hand = await in_database(pen, answer)
    await in_database(hand.write, "Hello")
    async with page(alice) as socket:
        await watch(socket, answer.generation_id)
        await next_of(socket, "delta")
        stopping = asyncio.create_task(close_all(seconds=0))
        await in_database(hand.end)
        assert (await next_of(socket, "end"))["status"] == "done"
        assert await next_of(socket) == 1012
        await stopping


async def test_a_process_that_stops_waits_for_no_answer_that_goes_on(
    alice: User, release: Release, pen: Callable[..., Any]
):
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    hand = await in_database(pen, answer)
    await in_database(hand.write, "Hello")
    async with page(alice) as socket:
        await watch(socket, answer.generation_id)
        await next_of(socket, "delta")
        async with asyncio.timeout(LAST_LOOK_SECONDS + 5):
            await close_all(seconds=0)
        assert await next_of(socket) == 1012


async def test_a_reader_whose_end_cannot_be_read_with_others_reads_it_alone(
    alice: User, release: Release, valkey: Valkey, pen: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    def broken(places: list[Place]) -> None:
        asked.append(places)
        raise ValueError("one of them")

    asked: list[list[Place]] = []
    monkeypatch.setattr(tail, "ends", broken)
    answer = await in_database(Chat.start, alice, "Hi", uuid4())
    assert answer.generation_id
    hand = await in_database(pen, answer)
    await in_database(hand.write, "Hello")
    kinds = []
    async for frame in tail.follow_generation(answer.generation_id, 0, 0):
        kinds.append(frame["type"])
        if kinds[-1] == "delta":
            await in_database(hand.end)
    assert kinds == ["state", "delta", "end"]
    assert asked, "it was tried with the others"
