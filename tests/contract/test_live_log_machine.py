"""The machine of the log, with its newest part in a Redis that has every kind of trouble."""

import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from inference import redis_server
from inference.tokenlog import DatabaseLog
from tests.contract.test_tokenlog_machine import MOST, LogMachine, Writer
from tests.faults.workers import ALL
from tests.valkey import Valkey


class FlakyServer(redis_server.Server):
    """A real Redis that is away when it is told to be."""

    down = False

    @property
    def is_away(self) -> bool:
        return self.down

    def call(self, command: Callable[[], Any]) -> Any:
        if self.down:
            raise redis_server.Away
        return super().call(command)


class LiveMachine(LogMachine):
    """With Redis: which is emptied, goes away, comes back, and is restarted from an old copy.

    What was shown may be taken back only when a writer dies together with what Redis knew,
    and then with a new epoch.
    """

    valkey: Valkey
    redis: FlakyServer

    def __init__(self) -> None:
        super().__init__()
        self.redis.down = False
        self.valkey.empty()
        self.reached = False  # the last claim was told to Redis
        self.copies: dict[Any, Any] = {}

    def follow(self, writer: Writer) -> None:
        self.reached = not self.redis.down
        if writer.epoch == self.epoch:
            super().follow(writer)
        else:
            self.is_sent_back_to(writer.epoch)

    def is_sent_back_to(self, epoch: int) -> None:
        assert epoch > self.epoch
        self.epoch, self.shown, self.shown_seq = epoch, "", 0

    def may_miss_a_stranger(self, writer: Writer) -> bool:
        """Its event is in its memory only, or in an epoch that is over. (Leases are not played
        here: a worker does not write once its own may have run out.)"""
        return self.redis.down or not self.reached

    def may_wait_with_the_end(self) -> bool:
        return self.redis.down and self.row().status == "running"

    @rule(trouble=st.sampled_from(["empty", "away", "back", "copy", "old copy", "old copy"]))
    def redis_has_trouble(self, trouble: str) -> None:
        client = self.valkey.client
        if trouble in ("away", "back"):
            self.redis.down = trouble == "away"
        elif trouble == "copy":
            self.copies = {key: client.dump(key) for key in client.scan_iter()}
        else:
            self.valkey.empty()
        if trouble == "old copy":
            self.is_restarted_from_its_copy()

    def is_restarted_from_its_copy(self) -> None:
        for key, value in self.copies.items():
            self.valkey.client.restore(key, 0, value)
            if not key.endswith(b":events"):
                self.valkey.client.hset(key, "run", "another")
        self.reached = False

    @precondition(lambda self: self.owner)
    @rule()
    def the_owner_saves(self) -> None:
        assert self.owner
        if self.ended is None:
            self.owner.log.save(self.owner.fence)
            assert DatabaseLog(self.run.pk).text() == self.owner.text

    @rule()
    def the_reader_looks(self) -> None:
        # The owner may have begun a new epoch too; that is told with its first event.
        for event in self.log_of_a_reader().read(self.epoch, self.shown_seq):
            if event.epoch != self.epoch:
                self.is_sent_back_to(event.epoch)
            assert event.seq == self.shown_seq + 1
            assert event.offset == len(self.shown)
            self.shown += event.text
            self.shown_seq = event.seq

    def check_what_was_shown(self, text: str) -> None:
        if self.ended and self.row().epoch != self.epoch:
            self.is_sent_back_to(self.row().epoch)
        if self.ended:
            assert text.startswith(self.shown)
        elif self.row().epoch == self.epoch:
            # What is not saved cannot be read while Redis is away.
            assert text.startswith(self.shown) or self.shown.startswith(text)


# How often each thing happens in a drive. Hypothesis tries everything equally often and finds what
# nobody thought of; this is what a bad day looks like, and reaches deeper.
BAD_DAY = {
    "the_owner_goes_on": 8, "somebody_appends": 4, "the_reader_looks": 6, "redis_has_trouble": 5,
    "lease_runs_out": 3, "somebody_claims": 3, "the_owner_saves": 3, "somebody_begins_anew": 1,
    "somebody_gives_back": 1, "somebody_renews": 1, "the_person_stops": 1, "somebody_finishes": 1,
    "the_person_lengthens": 5, "the_tries_are_counted": 1,
}  # fmt: skip
TROUBLES = ("empty", "away", "back", "back", "copy", "copy", "old copy")


def drive(machine: LogMachine, seed: int) -> None:
    draw = random.Random(seed)
    machine.enqueue()
    for _ in range(80):
        [name] = draw.choices(list(BAD_DAY), list(BAD_DAY.values()))
        step = getattr(machine, name)
        if not all(condition(machine) for condition in step.hypothesis_stateful_rule.preconditions):
            continue
        arguments = {"which": draw.randint(0, 9), "count": draw.randint(1, 4), "text": "é ",
                     "kind": draw.choice(["done", "failed"]),
                     "trouble": draw.choice(TROUBLES)}  # fmt: skip
        step(**{k: v for k, v in arguments.items() if k in inspect.signature(step).parameters})
        machine.the_log_is_dense_and_what_was_shown_stays()
        machine.the_result_is_the_log()


@pytest.mark.django_db
def test_a_live_log_keeps_them_too_whatever_becomes_of_redis(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    server = FlakyServer(valkey.url)
    monkeypatch.setattr(redis_server, "server", lambda: server)
    monkeypatch.setattr(redis_server, "TRY_AGAIN_SECONDS", 0)
    monkeypatch.setattr(LiveMachine, "valkey", valkey, raising=False)
    monkeypatch.setattr(LiveMachine, "redis", server, raising=False)
    run_state_machine_as_test(LiveMachine, settings=MOST)


@pytest.mark.django_db
@pytest.mark.parametrize("part", range(4))
def test_a_live_log_keeps_them_on_many_bad_days(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, part: int
):
    """`make faults`: 2,000 days. A failure tells its seed."""
    server = FlakyServer(valkey.url)
    monkeypatch.setattr(redis_server, "server", lambda: server)
    monkeypatch.setattr(redis_server, "TRY_AGAIN_SECONDS", 0)
    monkeypatch.setattr(LiveMachine, "valkey", valkey, raising=False)
    monkeypatch.setattr(LiveMachine, "redis", server, raising=False)
    days = 500 if ALL else 25
    for seed in range(part * days, (part + 1) * days):
        try:
            drive(LiveMachine(), seed)
        except Exception as error:
            raise AssertionError(f"on the day with the seed {seed}") from error
