"""Rows 1, 4, 5, 7, 14 to 19, 38 and 39 of the fault matrix: real workers on a real Valkey."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from accounts.models import User
from inference import metrics, redis_server
from inference.models import Generation, Release
from inference.queue import LEASE
from tests.faults.workers import ALL, Recorder, Workers, ask, of_all, wait_for
from tests.valkey import Valkey, use

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = "count 60 pace=150"
COUNTED = " ".join(str(number) for number in range(1, 61))
LONG = "count 1000 pace=150"  # goes on for about 25 seconds
LONGER = "count 1000 pace=45"  # and this for about 85: the same text
LONGS = " ".join(str(number) for number in range(1, 1001))


@pytest.fixture
def redis(tmp_path: Path, settings: Any) -> Iterator[Valkey]:
    """A Valkey of the test's own, which forgets nothing that it has confirmed."""
    server = Valkey(tmp_path, keeps=True).start()
    use(server, settings)
    yield server
    server.kill()


@pytest.fixture
def workers(redis: Valkey, start_workers: Callable[..., Workers], release: Release) -> Workers:
    return start_workers(release)


def rate_of(reader: Recorder, seconds: float) -> float:
    """How often a second new text is seen."""
    seen, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        before = reader.seq
        reader.look()
        seen += reader.seq > before
        time.sleep(0.02)
    return seen / seconds


def in_redis(reader: Recorder) -> int | None:
    """The last event that Redis has."""
    key = redis_server.name("log", f"{{{reader.run.pk}}}")
    found = redis_server.server().client.hget(key, "seq")
    return int(found) if found else None


def lose_lease(reader: Recorder) -> None:
    """As if its ten seconds had passed."""
    Generation.objects.filter(pk=reader.run.pk).update(lease_until=Now() - LEASE)


def test_row_1_a_worker_killed_mid_decode_is_continued_and_nothing_is_taken_back(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    assert in_redis(reader)
    first.kill()
    workers.start()
    assert reader.read_to_the_end() == COUNTED
    assert reader.taken_back == []
    assert Generation.objects.get(pk=reader.run.pk).attempts == 2


@pytest.mark.parametrize(
    "window",
    ["claimed", "prefill", "before_append@9", "in_append", "in_append@9", "after_append",
     "after_append@9", "before_finish", "in_finish", "after_finish"],
)  # fmt: skip
def test_row_4_and_5_killed_in_any_window_before_the_database_has_it(
    workers: Workers, alice: User, release: Release, window: str
):
    reader = ask(alice, release, COUNT)
    worker = workers.start(f"{window}:kill")
    worker.wait_until_dead()
    reader.look()
    worker.bury()
    workers.start()
    assert reader.read_to_the_end() == COUNTED
    assert reader.kind == "done"
    assert all(not shown for shown in reader.taken_back)


def test_row_7_a_frozen_worker_that_wakes_up_after_a_takeover_writes_nothing(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    first.send(signal.SIGSTOP)
    workers.start().wait_until_ready()
    if not ALL:  # then its lease is waited for
        lose_lease(reader)
    reader.read_until(len(reader.text) + 10, seconds=14)
    first.send(signal.SIGCONT)
    assert reader.read_to_the_end() == COUNTED
    assert reader.taken_back == []
    assert Generation.objects.get(pk=reader.run.pk).fence == 2


def test_row_14_while_redis_is_down_the_answer_goes_on_through_the_database(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    workers.start()
    reader = ask(alice, release, LONGER if ALL else LONG)
    reader.read_until(40)
    redis.kill()
    reader.read_until(len(reader.text) + 1, seconds=5)
    assert rate_of(reader, 60 if ALL else 3) >= 2
    redis.start()
    up_at = time.monotonic()
    wait_for(lambda: (in_redis(reader) or 0) > reader.seq, 5, "Redis to be used again")
    assert time.monotonic() - up_at < (2 if ALL else 4)  # generous beside other tests
    reader.run.cancel()
    assert LONGS.startswith(reader.read_to_the_end())
    assert reader.taken_back == []


def test_row_15_a_redis_that_is_restarted_empty_is_filled_by_the_worker(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    redis.empty()
    reader.read_until(60)
    assert in_redis(reader)
    assert reader.read_to_the_end() == COUNTED
    assert reader.taken_back == []


def test_row_16_redis_emptied_and_the_worker_killed_take_back_a_second_at_most(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(100)
    first.send(signal.SIGKILL)
    first.wait_until_dead()
    redis.empty()
    reader.look()
    saved = len(Generation.objects.get(pk=reader.run.pk).log.text())
    first.bury()
    workers.start()
    assert reader.read_to_the_end() == COUNTED
    [shown] = reader.taken_back
    assert COUNTED.startswith(shown)
    assert len(shown) - saved <= 200  # a second of it, at 150 tokens a second
    assert reader.epoch == 1


def test_row_17_a_frozen_redis_holds_nothing_up_for_longer_than_a_second(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    workers.start()
    reader = ask(alice, release, LONG)
    others = [ask(alice, release, LONG) for _ in range(6)]  # one look at Redis must not stop all
    reader.read_until(40)
    redis.freeze()
    frozen_at = time.monotonic()
    reader.read_until(len(reader.text) + 1, seconds=6)
    assert time.monotonic() - frozen_at < 4
    assert rate_of(reader, 9 if ALL else 2) >= 1
    redis.thaw()
    for other in others:
        other.run.cancel()
    reader.run.cancel()
    assert LONGS.startswith(reader.read_to_the_end())
    assert reader.taken_back == []


def test_row_19_a_full_redis_is_done_without(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    worker = workers.start()
    reader = ask(alice, release, LONG)
    reader.read_until(40)
    redis.client.config_set("maxmemory", "1mb")
    reader.read_until(len(reader.text) + 100)
    wait_for(lambda: b"chatsite_redis_up 0.0" in metrics.text(), 3, "an alert to be possible")
    redis.client.config_set("maxmemory", "0")
    wait_for(lambda: (in_redis(reader) or 0) > reader.seq, 5, "Redis to be used again")
    wait_for(lambda: b"chatsite_redis_up 1.0" in metrics.text(), 3, "all to be well again")
    reader.run.cancel()
    assert LONGS.startswith(reader.read_to_the_end())
    assert reader.taken_back == []
    assert worker.is_alive  # and wrote all of it: nobody had to begin anew
    assert Generation.objects.get(pk=reader.run.pk).attempts == 1


@pytest.mark.parametrize("redis_is", ["up", "down"])
def test_row_38_a_stop_in_mid_stream_is_heard(
    workers: Workers, redis: Valkey, alice: User, release: Release, redis_is: str
):
    workers.start()
    reader = ask(alice, release, LONG)
    reader.read_until(30)
    if redis_is == "down":
        redis.kill()
    asked_at = time.monotonic()
    reader.run.cancel()
    reader.read_to_the_end()
    assert time.monotonic() - asked_at < 3  # generous: 0.3 and 1.2 on a machine of its own
    assert reader.kind == "stopped"
    assert reader.text


def test_row_39_a_stop_that_races_a_takeover_wins_and_keeps_what_was_shown(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    first.send(signal.SIGKILL)
    first.wait_until_dead()
    reader.look()
    shown = reader.text
    first.bury()
    reader.run.cancel()  # nobody has the run: it ends here, with what Redis has of it
    reader.read_to_the_end(5)
    assert reader.kind == "stopped"
    assert reader.text.startswith(shown)
    assert reader.taken_back == []


def test_a_drained_worker_leaves_everything_in_the_database(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, "count 400 pace=300")
    reader.read_until(40)
    first.send(signal.SIGTERM)
    first.wait_until_dead(25)
    redis.empty()
    shown = reader.text
    reader.look()
    assert reader.text.startswith(shown)
    workers.start()
    assert reader.read_to_the_end().endswith(" 399 400")


def test_many_seeded_kills_of_worker_and_redis_lose_repeat_and_reorder_nothing(
    workers: Workers, redis: Valkey, alice: User, release: Release
):
    """Workers die, Redis is emptied, killed and started: never both within one answer's unsaved
    second, so nothing that was shown is taken back but by a new epoch."""
    draw = random.Random(20261122)
    kills = of_all(80)
    worker = workers.start()
    readers: list[Any] = []
    while kills:
        readers = [r for r in readers if not r.kind]
        while len(readers) < 8:
            length = draw.randint(40, 400)
            readers.append(ask(alice, release, f"count {length} pace=400"))
            readers[-1].expected = " ".join(map(str, range(1, length + 1)))
        target = draw.choice(readers)
        target.read_until(len(target.text) + draw.randint(1, 60))
        what = draw.choice(["worker", "worker", "worker", "empty", "redis"])
        if what == "worker":
            worker.kill()
            worker = workers.start()
        elif what == "empty":
            redis.empty()
        else:
            redis.kill()
            time.sleep(draw.random() * 0.6)
            redis.start()
        kills -= 1
        for reader in readers:
            reader.look()
            assert reader.expected.startswith(reader.text)
    for reader in readers:
        assert reader.read_to_the_end() == reader.expected
        assert reader.kind == "done"
