"""What every log back end must keep: invariants I1 to I5 and I7 of docs/architecture.md."""

from typing import Any
from uuid import uuid4

import pytest
from django.db.models.functions import Now

from accounts.models import User
from inference.models import Generation, Prompt, Release, Worker
from inference.queue import LEASE
from inference.tokenlog import Fenced, unpack

pytestmark = pytest.mark.django_db


@pytest.fixture(params=["database", "live"], autouse=True)
def back_end(request: pytest.FixtureRequest) -> str:
    """The log in the database alone, and with its newest part in a real Valkey."""
    if request.param == "live":
        request.getfixturevalue("valkey")
    return str(request.param)


@pytest.fixture
def run(alice: User, release: Release) -> Generation:
    """A generation claimed by one worker."""
    Generation.objects.enqueue(user=alice, release=release, messages=[], parameters={})
    [claimed] = Generation.objects.claim(release, uuid4(), 1)
    return claimed


def take_over(run: Generation) -> Generation:
    """Another worker's claim, after the first one's lease ran out."""
    Generation.objects.filter(pk=run.pk).update(lease_until=Now() - LEASE)
    [claimed] = Generation.objects.claim(run.release, uuid4(), 1)
    return claimed


def result(**fields: Any) -> dict[str, Any]:
    return {"text": "", "token_ids": b"", "finish_reason": "end", **fields}


def test_a_reader_gets_what_was_appended_in_order_with_offsets(run: Generation):
    run.log.append(run.fence, 1, "Hé", [1, 2])
    run.log.append(run.fence, 2, "llo", [3])
    events = run.log.read(0, 0)
    assert [(e.seq, e.offset, e.text) for e in events] == [(1, 0, "Hé"), (2, 2, "llo")]


def test_a_reader_gets_only_what_comes_after_its_own_position(run: Generation):
    for seq in range(1, 6):
        run.log.append(run.fence, seq, str(seq), [seq])
    assert [event.seq for event in run.log.read(0, 3)] == [4, 5]


def test_a_reader_gets_no_more_at_once_than_it_asks_for(run: Generation):
    """Wherever they are: some may be saved already, and the live log begun anew after them."""
    for seq in range(1, 4):
        run.log.append(run.fence, seq, str(seq), [seq])
    run.log.save(run.fence)
    run = take_over(run)
    for seq in range(4, 7):
        run.log.append(run.fence, seq, str(seq), [seq])
    for limit in range(1, 7):
        for after in range(6):
            events = run.log.read(run.epoch, after, limit)
            assert [event.seq for event in events] == list(range(1, 7))[after : after + limit]


def test_a_reader_of_another_epoch_gets_everything(run: Generation):
    run.log.append(run.fence, 1, "a", [1])
    assert [event.seq for event in run.log.read(-1, 1)] == [1]
    run.log.save(run.fence)
    assert [event.seq for event in run.log.read(7, 1)] == [1]


def test_how_the_prompt_was_fitted_is_stored_by_the_current_writer_only(run: Generation):
    take_over(run)
    with pytest.raises(Fenced):
        run.log.prepare(run.fence, {"summary": "stale"}, summary_tokens=7)
    run.refresh_from_db()
    assert (Prompt.objects.get(pk=run.pk).summary, run.summary_tokens) == ("", 0)
    run.log.prepare(run.fence, {"summary": "current"}, summary_tokens=7)
    run.refresh_from_db()
    assert (Prompt.objects.get(pk=run.pk).summary, run.summary_tokens) == ("current", 7)


@pytest.mark.parametrize("is_saved", [False, True])
def test_the_last_of_the_text_says_so_to_readers_and_to_whoever_adopts(
    run: Generation, is_saved: bool
):
    run.log.append(run.fence, 1, "a", [1])
    run.log.append(run.fence, 2, "", [], finish="length")
    if is_saved:
        run.log.save(run.fence)
    new = take_over(run)
    tail = new.log.adopt(new.fence)
    assert (tail.text, tail.finish) == ("a", "length")
    assert [(event.finish, event.is_terminal) for event in new.log.read(new.epoch, 0)] == [
        ("", False),
        ("length", False),
    ]


@pytest.mark.parametrize("seq", [0, 1, 3, 9])
def test_an_append_out_of_sequence_is_refused_and_writes_nothing(run: Generation, seq: int):
    run.log.append(run.fence, 1, "a", [1])
    with pytest.raises(Fenced):
        run.log.append(run.fence, seq, "b", [2])
    assert run.log.text() == "a"


def test_the_old_writer_is_refused_after_a_takeover(run: Generation):
    run.log.append(run.fence, 1, "a", [1])
    new = take_over(run)
    new.log.adopt(new.fence)
    with pytest.raises(Fenced):
        run.log.append(run.fence, 2, "zombie", [2])
    with pytest.raises(Fenced):
        run.log.finish(run.fence, 2, "done", **result())
    new.log.append(new.fence, 2, "b", [2])
    assert run.log.text() == "ab"


def test_whoever_adopts_learns_the_whole_tail(run: Generation):
    run.log.append(run.fence, 1, "a", [1, 2])
    run.log.append(run.fence, 2, "b", [3])
    new = take_over(run)
    tail = new.log.adopt(new.fence)
    assert (tail.epoch, tail.seq, tail.text, tail.token_ids) == (0, 2, "ab", (1, 2, 3))


def test_adopting_under_an_old_fence_is_refused(run: Generation):
    take_over(run)
    with pytest.raises(Fenced):
        run.log.adopt(run.fence)


def test_there_is_one_terminal_event_and_nothing_after_it(run: Generation):
    run.log.append(run.fence, 1, "a", [1])
    run.log.finish(run.fence, 2, "done", **result(text="a"))
    for attempt in (
        lambda: run.log.append(run.fence, 3, "b", [2]),
        lambda: run.log.finish(run.fence, 3, "failed", **result()),
        lambda: run.log.adopt(run.fence),
    ):
        with pytest.raises(Fenced):
            attempt()
    assert [event.kind for event in run.log.read(0, 0)] == ["delta", "done"]


def test_an_append_says_when_somebody_asked_to_stop(run: Generation):
    assert run.log.append(run.fence, 1, "a", [1]) is False
    run.cancel()
    assert run.log.append(run.fence, 2, "b", [2]) is True


def test_a_log_that_inherits_goes_on_after_the_text_it_lengthens(run: Generation, alice: User):
    run.log.append(run.fence, 1, "Once", [1, 2])
    run.log.finish(run.fence, 2, "stopped", **result(text="Once", token_ids=b"\1\0\0\0\2\0\0\0"))
    run.refresh_from_db()
    longer = Generation.objects.enqueue(user=alice, release=run.release, messages=[], lengthens=run)
    [claimed] = Generation.objects.claim(run.release, uuid4(), 1)
    assert claimed.log.adopt(claimed.fence).token_ids == (1, 2)
    assert longer.log.text() == "Once"
    claimed.log.append(claimed.fence, 2, " upon", [3])
    assert [event.offset for event in longer.log.read(0, 0)] == [0, 4]


def test_a_cancel_before_any_claim_ends_the_run_with_its_one_event(alice: User, release: Release):
    run = Generation.objects.enqueue(user=alice, release=release, messages=[])
    run.cancel()
    run.cancel()
    assert run.status == "stopped"
    assert [event.kind for event in run.log.read(0, 0)] == ["stopped"]
    assert Generation.objects.claim(release, uuid4(), 5) == []


@pytest.mark.parametrize("by_its_worker", [True, False])
def test_however_a_run_ends_it_says_which_build_wrote_it(run: Generation, by_its_worker: bool):
    assert run.boot_id
    Worker.objects.create(
        boot_id=run.boot_id, node="here", pid=1, release=run.release, engine_build="build 7"
    )
    if by_its_worker:
        run.log.finish(run.fence, 1, "done", **result())
    else:
        Generation.objects.void_leases(run.boot_id)
        run.log.end_unclaimed("failed")
    Worker.objects.all().delete()
    run.refresh_from_db()
    assert run.engine_build == "build 7"


@pytest.mark.parametrize("kind", ["failed", "stopped"])
def test_an_answer_whose_readers_know_that_it_is_whole_is_done_whatever_came_then(
    run: Generation, kind: str
):
    run.log.append(run.fence, 1, "whole", [1], finish="length")
    assert run.boot_id
    Generation.objects.void_leases(run.boot_id)
    assert Generation(pk=run.pk).log.end_unclaimed(kind, "The model cannot be loaded.")
    run.refresh_from_db()
    assert (run.status, run.text, run.finish_reason) == ("done", "whole", "length")
    assert run.error == ""


def test_token_ids_survive_packing(run: Generation):
    ids = [0, 1, 49_151, 2**31 - 1]
    run.log.append(run.fence, 1, "x", ids)
    assert list(take_over(run).log.adopt(2).token_ids) == ids
    assert unpack(b"") == ()


def test_a_log_that_begins_anew_shows_its_readers_nothing_of_before(run: Generation):
    run.log.append(run.fence, 1, "bad", [1, 2])
    tail = run.log.restart(run.fence)
    assert (tail.epoch, tail.seq, tail.text, tail.token_ids) == (1, 0, "", ())
    assert run.log.read(0, 1) == []
    run.log.append(run.fence, 1, "good", [3])
    assert [(e.epoch, e.seq, e.offset, e.text) for e in run.log.read(0, 1)] == [(1, 1, 0, "good")]
    assert take_over(run).log.adopt(run.fence + 1).token_ids == (3,)


def test_only_the_writer_makes_a_log_begin_anew(run: Generation):
    run.log.append(run.fence, 1, "good", [1])
    take_over(run)
    with pytest.raises(Fenced):
        run.log.restart(run.fence)
    assert [event.text for event in run.log.read(0, 0)] == ["good"]
