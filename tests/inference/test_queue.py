"""Who gets a run, for how long, and what happens when they do not come back."""

import json
import os
import time
from datetime import timedelta
from threading import Barrier, Thread
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction
from django.db.models.functions import Now

from accounts.models import Tier, User
from inference.engines.base import Sampling
from inference.models import Generation, Release, Worker
from inference.queue import LEASE, SUSPECT_WAITS
from inference.tokenlog import DatabaseLog

pytestmark = pytest.mark.django_db


def enqueue(user: User, release: Release, **fields: object) -> Generation:
    return Generation.objects.enqueue(user=user, release=release, messages=[], **fields)  # type: ignore[arg-type]


def claim(release: Release, limit: int = 10, boot_id: UUID | None = None) -> list[Generation]:
    return Generation.objects.claim(release, boot_id or uuid4(), limit)


def expire(*runs: Generation) -> None:
    Generation.objects.filter(pk__in=[run.pk for run in runs]).update(lease_until=Now() - LEASE)


def test_a_claim_raises_the_fence_and_counts_the_attempt(alice: User, release: Release):
    enqueue(alice, release)
    [run] = claim(release)
    assert (run.fence, run.attempts, run.status) == (1, 1, "running")


def test_a_run_is_claimed_once(alice: User, release: Release):
    enqueue(alice, release)
    assert len(claim(release)) == 1
    assert claim(release) == []


@pytest.mark.django_db(transaction=True)
def test_twenty_workers_at_once_share_the_queue_without_overlap(alice: User, release: Release):
    for _ in range(30):
        enqueue(alice, release)
    taken: list[UUID] = []
    together = Barrier(20)

    def work() -> None:
        together.wait()
        taken.extend(run.pk for run in claim(release, limit=3))
        connection.close()

    threads = [Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.extend(run.pk for run in claim(release, limit=100))
    assert len(taken) == len(set(taken)) == 30


def test_the_longest_waiting_is_served_first(alice: User, release: Release):
    first, second = enqueue(alice, release), enqueue(alice, release)
    assert [run.pk for run in claim(release)] == [first.pk, second.pk]


def test_a_better_tier_is_served_before_the_others(alice: User, bob: User, release: Release):
    bob.tier = Tier.objects.create(slug="gold", name="Gold", priority=1)
    waiting, preferred = enqueue(alice, release), enqueue(bob, release)
    assert Generation.objects.position_of(waiting) == 2
    assert Generation.objects.position_of(preferred) == 1
    assert claim(release, limit=1)[0].pk == preferred.pk


def test_only_the_release_asked_for_is_claimed(
    alice: User, release: Release, other_release: Release
):
    enqueue(alice, other_release)
    assert claim(release) == []


def test_a_run_whose_lease_ran_out_is_claimed_again_under_a_higher_fence(
    alice: User, release: Release
):
    enqueue(alice, release)
    [run] = claim(release)
    assert claim(release) == []
    expire(run)
    [again] = claim(release)
    assert (again.pk, again.fence, again.attempts) == (run.pk, 2, 2)


def test_a_renewed_lease_is_kept_and_a_lost_one_is_reported(alice: User, release: Release):
    kept, lost = (enqueue(alice, release), enqueue(alice, release))
    claim(release)
    expire(lost)
    claim(release)
    assert Generation.objects.renew({kept.pk: 1, lost.pk: 1}) == {kept.pk}


def test_a_run_given_back_is_free_at_once_and_the_attempt_is_not_counted(
    alice: User, release: Release
):
    enqueue(alice, release)
    [run] = claim(release)
    assert Generation.objects.give_back(run.pk, run.fence)
    assert not Generation.objects.give_back(run.pk, run.fence)  # it is not theirs any more
    [again] = claim(release)
    assert again.attempts == 1
    assert again.fence > run.fence


def test_giving_back_under_an_old_fence_changes_nothing(alice: User, release: Release):
    enqueue(alice, release)
    [run] = claim(release)
    expire(run)
    claim(release)
    assert not Generation.objects.give_back(run.pk, run.fence)


def test_the_runs_of_a_dead_worker_are_free_at_once_and_nobody_elses(alice: User, release: Release):
    dead, living = uuid4(), uuid4()
    first, second = enqueue(alice, release), enqueue(alice, release)
    claim(release, 1, dead)
    claim(release, 1, living)
    assert Generation.objects.void_leases(dead) == 1
    assert [run.pk for run in claim(release)] == [first.pk]
    assert Generation.objects.get(pk=second.pk).boot_id == living


def test_three_claims_without_a_token_are_the_last(alice: User, release: Release):
    enqueue(alice, release)
    for _ in range(3):
        [run] = claim(release)
        expire(run)
    assert claim(release) == []
    Generation.objects.fail_exhausted()
    run.refresh_from_db()
    assert (run.status, run.attempts) == ("failed", 3)
    assert run.error


def test_an_exhausted_run_that_cannot_be_ended_now_holds_up_no_other(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    runs = [enqueue(alice, release) for _ in range(3)]
    Generation.objects.update(fruitless_attempts=3)
    end = DatabaseLog.end_unclaimed

    def locked(log: DatabaseLog, *args: Any) -> bool:
        if log.id == runs[0].pk:
            raise OperationalError("lock timeout")
        return end(log, *args)

    monkeypatch.setattr(DatabaseLog, "end_unclaimed", locked)
    Generation.objects.fail_exhausted()
    assert [Generation.objects.get(pk=run.pk).status for run in runs] == [
        "queued", "failed", "failed",
    ]  # fmt: skip


def test_what_somebody_asked_who_was_disabled_since_is_stopped(
    alice: User, bob: User, release: Release
):
    waiting, running, other = (enqueue(person, release) for person in (alice, alice, bob))
    [claimed] = claim(release, 1)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    Generation.objects.stop_disabled()
    told = {run.pk: Generation.objects.get(pk=run.pk) for run in (waiting, running, other)}
    assert sorted(run.status for run in told.values()) == ["queued", "running", "stopped"]
    assert told[claimed.pk].cancelled_at
    assert told[other.pk].cancelled_at is None


def test_a_run_that_was_only_near_when_workers_died_is_not_given_up(alice: User, release: Release):
    """Beside others twice, then alone: only what happens to it alone counts against it."""
    first, second = enqueue(alice, release), enqueue(alice, release)
    for _ in range(2):
        assert {run.pk for run in claim(release)} == {first.pk, second.pk}
        expire(first, second)
    for _ in range(2):
        assert [run.pk for run in claim(release)] == [first.pk]
        expire(first)
    [run] = claim(release)
    assert (run.attempts, run.fruitless_attempts, run.shared_attempts) == (5, 3, 2)
    run.log.append(run.fence, 1, "x", [1])
    run.refresh_from_db()
    assert (run.fruitless_attempts, run.shared_attempts) == (0, 0)


def test_a_suspected_run_that_has_waited_gets_an_idle_worker(alice: User, release: Release):
    """Busy workers always find something else; without this it could wait for ever."""
    first, second = enqueue(alice, release), enqueue(alice, release)
    for _ in range(2):
        claim(release)
        expire(first, second)
    third = enqueue(alice, release)
    Generation.objects.filter(pk=first.pk).update(shared_attempts=0)
    busy = Generation.objects.claim(release, uuid4(), 10, idle=False)
    assert [run.pk for run in busy] == [first.pk]  # it may go on beside others
    waited = Now() - LEASE - SUSPECT_WAITS
    Generation.objects.filter(pk=second.pk).update(lease_until=waited)
    assert Generation.objects.claim(release, uuid4(), 10, idle=False) == []
    assert [run.pk for run in claim(release)] == [second.pk]
    assert [run.pk for run in claim(release)] == [third.pk]


def test_a_token_clears_the_count_of_fruitless_attempts(alice: User, release: Release):
    enqueue(alice, release)
    for seq in range(1, 6):
        [run] = claim(release)
        run.log.append(run.fence, seq, "x", [seq])
        expire(run)
    [run] = claim(release)
    assert (run.attempts, run.fruitless_attempts) == (6, 1)


def test_a_branch_has_at_most_one_active_run(alice: User, release: Release):
    enqueue(alice, release, branch="one")
    enqueue(alice, release, branch="two")
    with pytest.raises(IntegrityError):
        enqueue(alice, release, branch="one")


def test_a_branch_is_free_again_once_its_run_has_ended(alice: User, release: Release):
    enqueue(alice, release, branch="one").cancel()
    assert enqueue(alice, release, branch="one").is_active


def test_a_stranger_sees_no_run(alice: User, bob: User, release: Release):
    run = enqueue(alice, release)
    assert Generation.objects.visible_to(alice).filter(pk=run.pk).exists()
    assert not Generation.objects.visible_to(bob).exists()


def test_the_events_of_a_long_ended_run_expire_and_its_text_stays(alice: User, release: Release):
    enqueue(alice, release)
    [run] = claim(release)
    run.log.append(run.fence, 1, "kept", [1])
    run.log.finish(run.fence, 2, "done", text="kept")
    Generation.objects.expire_logs()
    assert run.log.read(0, 0)
    Generation.objects.filter(pk=run.pk).update(finished_at=Now() - timedelta(hours=1))
    Generation.objects.expire_logs()
    run.refresh_from_db()
    assert (run.log.read(0, 0), run.text) == ([], "kept")


def test_a_frozen_schema_keeps_the_order_of_its_properties(alice: User, release: Release):
    schema = {"type": "object", "properties": {"long": {}, "b": {}, "a": {}}}
    run = enqueue(alice, release, parameters={"json_schema": schema})
    run = Generation.objects.get(pk=run.pk)
    frozen = Sampling.from_parameters(run.prompt.parameters).json_schema
    assert list(json.loads(frozen)["properties"]) == ["long", "b", "a"]


def _wait_for_a_lock() -> None:
    """Until somebody waits for one."""
    deadline = time.monotonic() + 20
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT COUNT(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
            time.sleep(0.02)
    raise AssertionError("nobody waits for a lock")


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite locks the whole database")
@pytest.mark.django_db(transaction=True)
def test_a_dead_workers_runs_are_freed_in_the_order_in_which_its_last_save_locks_them(
    alice: User, release: Release
):
    for _ in range(3):
        enqueue(alice, release)
    dead = uuid4()
    claim(release, boot_id=dead)
    first, *others = Generation.objects.order_by("pk")
    freed: list[int] = []

    def free() -> None:
        freed.append(Generation.objects.void_leases(dead))
        connection.close()

    one = Generation.objects.filter(pk=first.pk)
    one.update(turn=99)  # and so its row lies last
    with transaction.atomic():
        assert one.select_for_update()
        freeing = Thread(target=free)
        freeing.start()
        _wait_for_a_lock()
        rest = Generation.objects.filter(pk__in=[run.pk for run in others])
        assert len(rest.select_for_update(nowait=True)) == 2  # it waits with nothing in its hands
    freeing.join()
    assert freed == [3]


@pytest.mark.django_db
def test_a_process_with_the_number_of_a_dead_one_frees_what_that_one_held(
    alice: User, release: Release
):
    """As in a container, in which every start has the number 1."""
    enqueue(alice, release)
    dead, elsewhere = uuid4(), uuid4()
    for boot_id, node in ((dead, Worker.this_node()), (elsewhere, "another host")):
        Worker.objects.create(boot_id=boot_id, node=node, pid=os.getpid(), release=release)
    [run] = claim(release, boot_id=dead)
    assert claim(release) == []
    Worker.objects.bury_predecessors()
    [again] = claim(release)
    assert (again.pk, again.fence) == (run.pk, run.fence + 1)
    states = Worker.objects.order_by("state").values_list("state", "boot_id")
    assert list(states) == [("gone", dead), ("loading", elsewhere)]
