"""Rows 1 to 6, 12, 13, 38 and 39 of the fault matrix, and each window of the write path."""

import random
import signal
import time
from typing import Any

import pytest
from django.conf import settings as site_settings

from accounts.models import User
from inference.models import Generation, Release
from tests.faults.workers import Workers, ask, of_all, wait_for

pytestmark = pytest.mark.django_db(transaction=True)

ON_SQLITE = "sqlite" in site_settings.DATABASES["default"]["ENGINE"]
COUNT = "count 60 pace=150"
COUNTED = " ".join(str(number) for number in range(1, 61))


def test_row_1_a_worker_killed_mid_decode_is_continued_by_another(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    first.kill()
    workers.start()
    killed_at = time.monotonic()
    reader.read_until(len(reader.text) + 1)
    assert time.monotonic() - killed_at < 5
    assert reader.read_to_the_end() == COUNTED
    assert Generation.objects.get(pk=reader.run.pk).attempts == 2


def test_row_2_a_lost_host_is_noticed_when_its_lease_runs_out(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    second = workers.start().wait_until_ready()
    first.send(signal.SIGKILL)  # and nobody buries it
    killed_at = time.monotonic()
    reader.read_until(len(reader.text) + 1)
    assert time.monotonic() - killed_at < 15
    assert reader.read_to_the_end() == COUNTED
    assert second.is_alive


def test_row_3_killed_in_prefill_the_first_token_still_arrives_once(
    workers: Workers, alice: User, release: Release
):
    reader = ask(alice, release, COUNT)
    workers.start("prefill:kill").wait_until_dead()
    assert reader.run.log.text() == ""
    _bury_all()
    workers.start()
    assert reader.read_to_the_end() == COUNTED


@pytest.mark.parametrize(
    "window",
    ["claimed", "prefill", "before_append", "before_append@9", "in_append", "in_append@9",
     "after_append", "after_append@9", "before_finish", "in_finish", "after_finish"],
)  # fmt: skip
def test_row_4_and_5_killed_in_any_window_of_the_write_path(
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


def test_row_6_killed_three_times_without_a_token_it_fails_and_is_not_tried_again(
    workers: Workers, alice: User, release: Release
):
    reader = ask(alice, release, COUNT)
    for _ in range(3):
        worker = workers.start("prefill:kill")
        worker.wait_until_dead()
        worker.bury()
    workers.start()
    reader.read_to_the_end()
    run = Generation.objects.get(pk=reader.run.pk)
    assert (run.status, run.attempts) == ("failed", 3)
    assert "three times" in run.error


def test_row_6_a_prompt_that_crashes_the_engine_late_keeps_its_text(
    workers: Workers, alice: User, release: Release
):
    reader = ask(alice, release, "count 60 pace=150 crash=80")
    for _ in range(20):  # a try that still adds a token is not one in vain
        worker = workers.start()
        worker.wait_until_dead()
        worker.bury()
        if Generation.objects.exhausted().exists():
            break
    workers.start()
    shown = reader.read_to_the_end()
    assert reader.kind == "failed"
    assert COUNTED.startswith(shown)
    assert len(shown) > 40


def test_row_12_a_worker_told_to_end_hands_its_run_over_uncounted(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, "count 200 pace=300")
    reader.read_until(40)
    first.send(signal.SIGTERM)
    first.wait_until_dead(25)
    run = Generation.objects.get(pk=reader.run.pk)
    assert (run.status, run.attempts) == ("running", 0)
    workers.start()
    assert reader.read_to_the_end().endswith(" 199 200")
    assert Generation.objects.get(pk=reader.run.pk).attempts == 1


def test_row_12_a_short_answer_is_finished_before_the_worker_ends(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, "count 20 pace=100")
    reader.read_until(10)
    first.send(signal.SIGTERM)
    first.wait_until_dead(25)
    reader.look()
    assert reader.kind == "done"


def test_row_13_a_second_term_in_the_drain_is_as_harmless_as_a_kill(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    first.send(signal.SIGTERM)
    time.sleep(0.1)
    first.send(signal.SIGTERM)
    first.wait_until_dead(5)
    first.bury()
    workers.start()
    assert reader.read_to_the_end() == COUNTED


def test_row_38_a_stop_in_mid_stream_keeps_the_text_and_ends_within_300_ms(
    workers: Workers, alice: User, release: Release
):
    workers.start()
    reader = ask(alice, release, "count 500 pace=100")
    reader.read_until(30)
    asked_at = time.monotonic()
    reader.run.cancel()
    acknowledged = time.monotonic() - asked_at
    reader.read_to_the_end()
    assert acknowledged < 0.25  # generous; bench/stop.py has the figures
    assert time.monotonic() - asked_at < 1.5
    assert reader.kind == "stopped"
    assert reader.text


def test_row_38_a_stop_in_prefill_ends_it_without_text(
    workers: Workers, alice: User, release: Release
):
    workers.start()
    reader = ask(alice, release, "count 9 prefill=20")
    wait_for(lambda: Generation.objects.get(pk=reader.run.pk).fence == 1, 20, "the claim")
    reader.run.cancel()
    assert reader.read_to_the_end(5) == ""
    assert reader.kind == "stopped"


def test_row_38_a_stop_after_the_end_or_twice_changes_nothing(
    workers: Workers, alice: User, release: Release
):
    workers.start()
    reader = ask(alice, release, "count 5 pace=200")
    reader.read_to_the_end()
    reader.run.cancel()
    reader.run.cancel()
    reader.look()
    assert reader.kind == "done"


def test_row_39_a_stop_that_races_a_takeover_wins_and_nothing_follows(
    workers: Workers, alice: User, release: Release
):
    first = workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    first.send(signal.SIGKILL)
    reader.run.cancel()
    first.wait_until_dead()
    first.bury()
    workers.start()
    reader.read_to_the_end()
    assert reader.kind == "stopped"
    assert COUNTED.startswith(reader.text)


def test_row_40_a_run_whose_wake_up_was_lost_is_started_within_three_seconds(
    workers: Workers, alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    workers.start().wait_until_ready()
    monkeypatch.setattr("inference.doorbell.ring", lambda topic: None)
    reader = ask(alice, release, "count 3")
    reader.read_until(1, seconds=3)


def test_many_seeded_kills_of_the_simulated_worker_lose_repeat_and_reorder_nothing(
    workers: Workers, alice: User, release: Release
):
    """`make faults`: 130 on SQLite, 70 on PostgreSQL. Each interrupts up to eight answers."""
    draw = random.Random(20261121)
    kills = of_all(130 if ON_SQLITE else 70)
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
        worker.kill()
        kills -= 1
        worker = workers.start()
        for reader in readers:
            reader.look()
            assert reader.expected.startswith(reader.text)
    for reader in readers:
        assert reader.read_to_the_end() == reader.expected
        assert reader.kind == "done"


def _bury_all() -> None:
    for boot_id in Generation.objects.values_list("boot_id", flat=True).distinct():
        if boot_id:
            Generation.objects.void_leases(boot_id)
