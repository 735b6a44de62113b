"""Who is served next when many wait, and when there is no room for more."""

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Tier, User
from chats.progress import roughly
from inference import fairness
from inference.models import Generation, Release, Worker
from inference.queue import LEASE
from inference.wakeups import LANES

pytestmark = pytest.mark.django_db


def ask(user: User, release: Release, times: int = 1) -> list[Generation]:
    enqueue = Generation.objects.enqueue
    return [enqueue(user=user, release=release, messages=[]) for _ in range(times)]


def served(release: Release, times: int) -> str:
    """The initials of those who are served next, one at a time."""
    order = ""
    for _ in range(times):
        [run] = Generation.objects.claim(release, uuid4(), 1)
        order += run.user.username[0]
        run.log.finish(run.fence, 1, "done", text="", token_ids=b"", finish_reason="end")
    return order


def test_one_person_who_asks_much_does_not_keep_another_waiting(
    alice: User, bob: User, release: Release
):
    ask(alice, release, 20)
    assert served(release, 3) == "aaa"
    ask(bob, release)
    assert "b" in served(release, 2)


def test_two_who_both_ask_much_take_turns(alice: User, bob: User, release: Release):
    ask(alice, release, 5)
    ask(bob, release, 5)
    assert served(release, 10) == "ab" * 5


def test_a_tier_of_weight_three_is_served_three_times_as_often(
    alice: User, bob: User, release: Release
):
    alice.tier = Tier.objects.create(slug="gold", name="Gold", weight=3)
    alice.save()
    ask(bob, release, 12)
    ask(alice, release, 12)
    assert served(release, 8).count("a") in (5, 6)


def test_who_comes_back_later_is_not_made_to_pay_for_what_they_had(
    alice: User, bob: User, release: Release
):
    ask(alice, release, 10)
    served(release, 10)
    ask(bob, release)
    ask(alice, release)
    assert sorted(served(release, 2)) == ["a", "b"]
    [mine] = ask(alice, release)
    assert mine.turn == 0


def test_the_position_is_the_place_in_the_fair_order(alice: User, bob: User, release: Release):
    ask(alice, release, 9)
    [waiting] = ask(bob, release)
    assert Generation.objects.position_of(waiting) == 2


def test_a_run_left_behind_goes_on_before_anybody_new(alice: User, bob: User, release: Release):
    [mine] = ask(alice, release)
    Generation.objects.claim(release, uuid4(), 1)
    ask(bob, release, 3)
    Generation.objects.filter(pk=mine.pk).update(lease_until=Now() - LEASE)
    [next_one] = Generation.objects.claim(release, uuid4(), 1)
    assert next_one.pk == mine.pk


@pytest.mark.parametrize("lanes", [tuple(LANES), ("interactive",)])
def test_the_queue_is_read_in_the_order_of_an_index(
    alice: User, release: Release, lanes: tuple[str, ...]
):
    """So that a claim costs the same with a hundred and with a million waiting."""
    Generation.objects.bulk_create(
        Generation(user=alice, release=release, turn=number) for number in range(5000)
    )
    [sample] = ask(alice, release)
    with CaptureQueriesContext(connection) as queries:
        Generation.objects.all()._lock_candidates(release, 2, lanes)
    [sql] = [q["sql"] for q in queries if "'queued'" in q["sql"]]
    explain = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE inference_generation")
        cursor.execute(f"{explain} {sql}")
        plan = "\n".join(" ".join(map(str, row)) for row in cursor.fetchall())
    assert sample.turn == 5000
    assert "generation_turns" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan


def test_a_full_queue_says_when_there_will_be_room(alice: User, release: Release, settings: object):
    settings.MAX_QUEUED = 3  # type: ignore[attr-defined]
    Worker.objects.create(
        boot_id=uuid4(), node="here", pid=1, release=release, state="ready", slots=2
    )
    [done] = ask(alice, release)
    served(release, 1)
    Generation.objects.filter(pk=done.pk).update(finished_at=F("started_at"))
    ask(alice, release, 2)
    fairness.require_room(Generation.objects.all(), release)
    ask(alice, release)
    with pytest.raises(fairness.QueueFull) as full:
        fairness.require_room(Generation.objects.all(), release, alice)
    assert full.value.retry_after == 1


def test_who_has_nothing_under_way_finds_room_in_a_full_queue_until_it_is_twice_as_full(
    alice: User, bob: User, release: Release, settings: object
):
    settings.MAX_QUEUED = 3  # type: ignore[attr-defined]
    ask(alice, release, 5)
    fairness.require_room(Generation.objects.all(), release, bob)
    ask(alice, release)
    with pytest.raises(fairness.QueueFull):
        fairness.require_room(Generation.objects.all(), release, bob)


def test_guests_find_room_in_a_full_queue_and_leave_some_to_members(
    alice: User, bob: User, release: Release, settings: object
):
    """Anybody can be many guests."""
    settings.MAX_QUEUED = 3  # type: ignore[attr-defined]
    guest = User.objects.create_guest()
    ask(alice, release, 3)
    for somebody in (guest, None):  # None: who has no session yet
        fairness.require_room(Generation.objects.all(), release, somebody)
    ask(alice, release)
    for somebody in (guest, None):
        with pytest.raises(fairness.QueueFull):
            fairness.require_room(Generation.objects.all(), release, somebody)
    fairness.require_room(Generation.objects.all(), release, bob)


def test_the_many_guests_of_one_address_do_not_keep_others_waiting(bob: User, release: Release):
    for _ in range(20):
        ask(User.objects.create_guest(origin="one"), release)
    ask(User.objects.create_guest("elsewhere", origin="another"), release)
    ask(bob, release)
    assert sorted(served(release, 4)) == ["b", "e", "g", "g"]
    member = User.objects.create_guest("member", origin="one").become_member("x", "y")
    ask(member, release)
    assert "x" in served(release, 2)


def test_one_person_has_so_many_answers_under_way_and_titles_are_not_counted(
    alice: User, bob: User, release: Release, settings: object
):
    settings.MAX_RUNS_EACH, settings.MAX_QUEUED = 3, 4  # type: ignore[attr-defined]
    runs = ask(alice, release, 3)
    with pytest.raises(fairness.TooManyUnderWay):
        fairness.require_room(Generation.objects.all(), release, alice)
    Generation.objects.filter(pk=runs[0].pk).update(purpose="title")
    fairness.require_room(Generation.objects.all(), release, alice)
    alice.tier = Tier(slug="staff", name="Staff", concurrent_runs=2)
    with pytest.raises(fairness.TooManyUnderWay):
        fairness.require_room(Generation.objects.all(), release, alice)
    Generation.objects.filter(pk=runs[1].pk).update(status="done")
    fairness.require_room(Generation.objects.all(), release, alice)


def test_the_expected_wait_grows_while_those_in_front_take_longer_than_usual(
    alice: User, release: Release
):
    wait = _waits(alice, release, slots=1, lasted=3)
    assert wait(1) == 1, "the slot is free"
    assert wait(3) == 6
    _begin(1, ago=57)
    assert wait(1) in (29, 30), "half as long again"
    assert wait(2) in (86, 87, 88), "and then one that may take as long"


def test_the_expected_wait_becomes_shorter_as_time_passes(alice: User, release: Release):
    wait = _waits(alice, release, slots=2, lasted=40)
    _begin(1, ago=10)
    _begin(1, ago=5)
    assert wait(1) in (30, 31)
    assert wait(2) in (35, 36)
    assert wait(3) in (70, 71)
    Generation.objects.filter(status="running").update(started_at=F("started_at") - timedelta(0, 9))
    assert wait(1) in (21, 22)


def test_titles_do_not_make_the_wait_for_an_answer_look_short(alice: User, release: Release):
    wait = _waits(alice, release, slots=1, lasted=40)
    _end(Generation.objects.create(user=alice, release=release, purpose="title"), lasted=1)
    _begin(1, ago=1)
    assert wait(1) in (39, 40)


def _waits(user: User, release: Release, slots: int, lasted: int) -> Callable[[int], int | None]:
    """What `expected_wait` says where one answer has taken so many seconds and more are queued."""
    Worker.objects.create(
        boot_id=uuid4(), node="n", pid=1, release=release, state="ready", slots=slots
    )
    ask(user, release, 4)
    _end(Generation.objects.earliest("turn"), lasted)
    return lambda position: fairness.expected_wait(Generation.objects.all(), release, position)


def _end(run: Generation, lasted: int) -> None:
    now = timezone.now()
    Generation.objects.filter(pk=run.pk).update(
        status="done", started_at=now - timedelta(seconds=lasted), finished_at=now
    )


def _begin(count: int, ago: int) -> None:
    chosen = Generation.objects.filter(status="queued").order_by("turn")[:count]
    begun = timezone.now() - timedelta(seconds=ago)
    Generation.objects.filter(pk__in=[run.pk for run in chosen]).update(
        status="running", started_at=begun
    )


def test_people_are_told_the_wait_in_round_numbers():
    told = {seconds: roughly(seconds) for seconds in (None, 1, 10, 11, 60, 61, 90, 100)}
    assert told == {None: None, 1: 1, 10: 10, 11: 15, 60: 60, 61: 90, 90: 90, 100: 120}
