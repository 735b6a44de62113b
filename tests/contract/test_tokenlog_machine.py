"""Any order of claims, appends, deaths, cancels and ends leaves a log that keeps its promises."""

import contextlib
from uuid import uuid4

import pytest
from django.db.models.functions import Now
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from accounts.models import User
from inference.catalogue import CATALOGUE, register
from inference.models import Generation
from inference.queue import LEASE
from inference.tokenlog import DatabaseLog, Fenced, pack
from tests.faults.workers import ALL

LONG = 6  # tokens
WHICH = st.integers(0, 9)


def finish_of(text: str) -> str:
    """What every append of such a text says: so its readers know what they are to be told."""
    return "length" if len(text) == 3 else ""


class Writer:
    """A worker that believes it owns the log: what it adopted and has written since."""

    def __init__(self, run: Generation) -> None:
        self.log = run.log
        tail = self.log.begin(run)
        self.epoch = tail.epoch
        self.fence, self.seq = run.fence, tail.seq
        self.text, self.ids, self.finish = tail.text, list(tail.token_ids), tail.finish


class LogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.writers: list[Writer] = []
        self.owner: Writer | None = None
        self.shown = ""
        self.shown_seq = 0
        self.epoch = 0
        self.ended: str | None = None
        self.token = 0
        self.inherits = 0  # events: the text of the one that is lengthened

    @initialize()
    def enqueue(self) -> None:
        # Examples share the test's database: a release of its own keeps each to its own run.
        model = register(CATALOGUE["simulated"]).model
        release = model.releases.create(
            version=model.releases.count() + 1, engine="simulated", context_tokens=2048
        )
        user = User.objects.create_guest()
        self.run = Generation.objects.enqueue(user=user, release=release, messages=[])

    def row(self) -> Generation:
        return Generation.objects.get(pk=self.run.pk)

    @precondition(lambda self: self.owner and self.ended is None)
    @rule()
    def lease_runs_out(self) -> None:
        Generation.objects.filter(pk=self.run.pk, status="running").update(
            lease_until=Now() - LEASE
        )

    @rule()
    def somebody_claims(self) -> None:
        for run in Generation.objects.claim(self.run.release, uuid4(), 1):
            self.owner = Writer(run)
            self.writers.append(self.owner)
            self.follow(self.owner)

    def follow(self, writer: Writer) -> None:
        """Its log goes on with all that was shown."""
        assert writer.epoch == self.epoch
        assert writer.text.startswith(self.shown)
        if events := writer.log.read(writer.epoch, 0):
            assert writer.finish == events[-1].finish

    @precondition(lambda self: self.writers)
    @rule(
        which=WHICH,
        text=st.text(
            st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=5
        ),
    )
    def somebody_appends(self, which: int, text: str) -> None:
        writer = self.writers[which % len(self.writers)]
        self.token += 1
        owns = writer is self.owner and self.ended is None
        try:
            writer.log.append(
                writer.fence, writer.seq + 1, text, [self.token], finish=finish_of(text)
            )
        except Fenced:
            assert not owns
            return
        assert owns or self.may_miss_a_stranger(writer)
        writer.seq += 1
        writer.text += text
        writer.ids.append(self.token)

    @precondition(lambda self: self.owner)
    @rule(count=st.integers(1, 4))
    def the_owner_goes_on(self, count: int) -> None:
        owner = self.owner
        assert owner
        for _ in range(count if self.ended is None else 0):
            self.token += 1
            text = f"{self.token} "
            owner.log.append(owner.fence, owner.seq + 1, text, [self.token], finish=finish_of(text))
            owner.seq += 1
            owner.text += text
            owner.ids.append(self.token)

    def is_long_enough(self) -> bool:
        """Else most logs would end before anything can happen to them."""
        return self.token >= LONG

    def may_miss_a_stranger(self, writer: Writer) -> bool:
        return False

    @precondition(lambda self: self.writers and self.is_long_enough())
    @rule(which=WHICH)
    def somebody_begins_anew(self, which: int) -> None:
        writer = self.writers[which % len(self.writers)]
        owns = writer is self.owner and self.ended is None
        before = self.row().epoch
        try:
            tail = writer.log.restart(writer.fence)
        except Fenced:
            assert not owns
            return
        assert owns
        assert tail.epoch == self.row().epoch == before + 1
        writer.seq, writer.text, writer.ids, writer.epoch = 0, "", [], tail.epoch
        self.epoch, self.shown, self.shown_seq = tail.epoch, "", 0

    @precondition(lambda self: self.writers and self.is_long_enough())
    @rule(which=WHICH, kind=st.sampled_from(["done", "failed", "stopped"]))
    def somebody_finishes(self, which: int, kind: str) -> None:
        writer = self.writers[which % len(self.writers)]
        owns = writer is self.owner and self.ended is None
        try:
            writer.log.finish(
                writer.fence, writer.seq + 1, kind,
                text=writer.text, token_ids=pack(writer.ids),
                completion_tokens=len(writer.ids) - self.row().inherited_tokens,
            )  # fmt: skip
        except Fenced:
            assert not owns
            return
        assert owns
        self.ended = kind

    @precondition(lambda self: self.writers)
    @rule(which=WHICH)
    def somebody_renews(self, which: int) -> None:
        writer = self.writers[which % len(self.writers)]
        owns = writer is self.owner and self.ended is None
        held = Generation.objects.renew({self.run.pk: writer.fence})
        assert held == ({self.run.pk} if owns else set())
        assert self.is_held() or not owns

    @precondition(lambda self: self.writers)
    @rule(which=WHICH)
    def somebody_gives_back(self, which: int) -> None:
        writer = self.writers[which % len(self.writers)]
        owns = writer is self.owner and self.ended is None
        with contextlib.suppress(Fenced):
            writer.log.release(writer.fence)
        tries = self.row().fruitless_attempts
        assert Generation.objects.give_back(self.run.pk, writer.fence) == owns
        assert self.row().fruitless_attempts == (max(tries - 1, 0) if owns else tries)
        if owns:
            assert not self.is_held()
            self.owner = None

    @precondition(lambda self: self.ended and self.row().text)
    @rule()
    def the_person_lengthens(self) -> None:
        ended, self.run = self.row(), Generation.objects.enqueue(
            user=self.run.user, release=self.run.release, messages=[], lengthens=self.row()
        )  # fmt: skip
        assert self.run.log.text() == ended.text
        self.writers, self.owner, self.ended, self.inherits = [], None, None, 1
        self.epoch, self.shown, self.shown_seq, self.token = 0, "", 0, 0

    def is_held(self) -> bool:
        """Whether a worker that may be alive has the run."""
        held = Generation.objects.filter(status="running", lease_until__gt=Now())
        return held.filter(pk=self.run.pk).exists()

    @precondition(lambda self: self.token == 0 or self.is_long_enough())
    @rule()
    def the_person_stops(self) -> None:
        was_held, is_whole = self.is_held(), self.is_whole()
        self.run.cancel()
        if was_held:
            assert self.row().status == "running"  # its worker hears of it
            assert self.row().cancelled_at
        elif self.ended is None and not self.may_wait_with_the_end():
            self.ended = "done" if is_whole else "stopped"
            assert self.row().status == self.ended

    def is_whole(self) -> bool:
        """Its readers have been told so: it is done whatever comes now."""
        events = self.log_of_a_reader().read(self.row().epoch, 0)
        return bool(events and events[-1].finish)

    def may_wait_with_the_end(self) -> bool:
        return False

    @rule()
    def the_tries_are_counted(self) -> None:
        is_whole = self.is_whole()
        Generation.objects.fail_exhausted()
        if self.owner and self.row().fence > self.owner.fence:
            self.owner = None  # a token of its had not been counted: it is tried again
        if self.ended is None and not self.row().is_active:
            assert self.row().fruitless_attempts == Generation.MAX_FRUITLESS_ATTEMPTS
            self.ended = "done" if is_whole else "failed"
            assert self.row().status == self.ended

    def log_of_a_reader(self) -> DatabaseLog:
        return DatabaseLog(self.run.pk) if self.ended else Generation(pk=self.run.pk).log

    @rule()
    def the_reader_looks(self) -> None:
        for event in self.log_of_a_reader().read(self.epoch, self.shown_seq):
            assert event.epoch == self.epoch
            assert event.seq == self.shown_seq + 1
            assert event.offset == len(self.shown)
            self.shown += event.text
            self.shown_seq = event.seq

    @invariant()
    def the_log_is_dense_and_what_was_shown_stays(self) -> None:
        if not hasattr(self, "run"):
            return
        events = self.log_of_a_reader().read(self.row().epoch, 0)  # as a page does
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        written = [event for event in events if not event.is_terminal][self.inherits :]
        assert all(event.finish == finish_of(event.text) for event in written)
        self.check_what_was_shown("".join(event.text for event in events))
        terminal = [event.kind for event in events if event.is_terminal]
        assert terminal == ([self.ended] if self.ended else [])
        assert not terminal or events[-1].is_terminal

    def check_what_was_shown(self, text: str) -> None:
        assert text.startswith(self.shown)

    @invariant()
    def the_result_is_the_log(self) -> None:
        if self.ended:
            row = self.row()
            assert row.status == self.ended
            assert row.text == DatabaseLog(row.pk).text()
            tokens = sum(len(bytes(c.token_ids)) // 4 for c in row.chunks.filter(epoch=row.epoch))
            assert tokens == len(bytes(row.token_ids)) // 4
            assert row.completion_tokens == tokens - row.inherited_tokens


# The same examples each time, but for `make faults`, which looks further.
MOST = settings(
    max_examples=600 if ALL else 60,
    stateful_step_count=40,
    derandomize=not ALL,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.django_db
def test_a_log_keeps_its_promises_under_any_order_of_events():
    run_state_machine_as_test(LogMachine, settings=MOST)
