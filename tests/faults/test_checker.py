"""What judges the nemesis must see each kind of harm."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db.models import F

from accounts.models import User
from bench.checker import check_run, complaints
from bench.reader import Reader
from bench.site import Person
from inference.models import Chunk, Generation, Release
from inference.tokenlog import pack


@pytest.fixture
def ended(alice: User, release: Release) -> Generation:
    Generation.objects.enqueue(user=alice, release=release, messages=[], parameters={})
    [run] = Generation.objects.claim(release, uuid4(), 1)
    run.log.append(run.fence, 1, "one ", [1, 2])
    run.log.append(run.fence, 2, "two", [3])
    result = {"text": "one two", "token_ids": pack([1, 2, 3]), "completion_tokens": 3}
    run.log.finish(run.fence, 3, "done", **result)
    return Generation.objects.get(pk=run.pk)


def chunk(number: int) -> Any:
    return Chunk.objects.filter(seq=number)


HARM: dict[str, Callable[[], object]] = {
    "a text that is not the log's": lambda: Generation.objects.update(text="one"),
    "a piece that is missing": lambda: chunk(1).delete(),
    "a piece that was repeated": lambda: chunk(2).update(text="twotwo"),
    "a piece in another's place": lambda: chunk(2).update(offset=0),
    "tokens that were not logged": lambda: Generation.objects.update(token_ids=pack([1, 2])),
    "tokens that were not counted": lambda: Generation.objects.update(completion_tokens=2),
    "no end": lambda: chunk(3).update(kind="delta"),
    "two ends": lambda: chunk(2).update(kind="done"),
    "another end than the row's": lambda: Generation.objects.update(status="stopped"),
    "a piece by a worker that was replaced": lambda: chunk(2).update(fence=9),
    "one that went on after it was stopped": lambda: Generation.objects.update(
        cancelled_at=F("finished_at") - timedelta(seconds=30)
    ),
    "one that never ended": lambda: Generation.objects.update(status="running"),
}


@pytest.mark.django_db
def test_nothing_is_said_about_a_run_that_is_well(ended: Generation):
    check_run(ended)
    assert list(complaints()) == []


@pytest.mark.django_db
@pytest.mark.parametrize("harm", HARM)
def test_harm_in_the_database_is_seen(ended: Generation, harm: str):
    HARM[harm]()
    assert len(list(complaints())) == 1


def delta(seq: int, offset: int, text: str, epoch: int = 0) -> dict[str, Any]:
    return {"type": "delta", "epoch": epoch, "seq": seq, "offset": offset, "text": text}


@pytest.mark.parametrize(
    "frame",
    [delta(3, 4, "two"), delta(1, 0, "one "), delta(2, 3, "two"), delta(2, 4, "two", epoch=1)],
    ids=["a hole", "a repetition", "another place", "another epoch without a word"],
)
def test_a_frame_that_does_not_fit_is_seen(frame: dict[str, Any]):
    reader = Reader(Person.__new__(Person), "one")
    reader.take(delta(1, 0, "one "))
    with pytest.raises(AssertionError):
        reader.take(frame)


END = {"type": "end", "status": "done", "epoch": 0, "seq": 1}


def test_an_end_before_the_last_piece_is_seen():
    reader = Reader(Person.__new__(Person), "one")
    with pytest.raises(AssertionError, match="an end at"):
        reader.take(END | {"seq": 2})


def test_a_frame_after_the_end_is_seen():
    reader = Reader(Person.__new__(Person), "one")
    reader.take(END)
    with pytest.raises(AssertionError, match="after the end"):
        reader.take(END)


def test_a_reader_that_was_reset_goes_on_from_the_start():
    reader = Reader(Person.__new__(Person), "one")
    reader.take(delta(1, 0, "one "))
    reader.take({"type": "reset", "epoch": 1, "to": 0})
    reader.take(delta(1, 0, "on", epoch=1))
    assert (reader.text, reader.resets) == ("on", 1)
