"""Any order of claims, appends, deaths, cancels and ends leaves a log that keeps its promises."""

from typing import Any
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
from inference.tokenlog import Fenced, pack


class Writer:
    """A worker that believes it owns the log: what it adopted and has written since."""

    def __init__(self, run: Generation) -> None:
        tail = run.log.adopt(run.fence)
        self.fence, self.seq = run.fence, tail.seq
        self.text, self.ids = tail.text, list(tail.token_ids)


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

    @precondition(lambda self: self.writers)
    @rule(
        data=st.data(),
        text=st.text(
            st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=5
        ),
    )
    def somebody_appends(self, data: Any, text: str) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        self.token += 1
        owns = writer is self.owner and self.ended is None
        try:
            self.run.log.append(writer.fence, writer.seq + 1, text, [self.token])
        except Fenced:
            assert not owns
            return
        assert owns
        writer.seq += 1
        writer.text += text
        writer.ids.append(self.token)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def somebody_begins_anew(self, data: Any) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        owns = writer is self.owner and self.ended is None
        try:
            tail = self.run.log.restart(writer.fence)
        except Fenced:
            assert not owns
            return
        assert owns
        assert tail.epoch == self.row().epoch == self.epoch + 1
        writer.seq, writer.text, writer.ids = 0, "", []
        self.epoch, self.shown, self.shown_seq = tail.epoch, "", 0

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), kind=st.sampled_from(["done", "failed", "stopped"]))
    def somebody_finishes(self, data: Any, kind: str) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        owns = writer is self.owner and self.ended is None
        try:
            self.run.log.finish(
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
    @rule(data=st.data())
    def somebody_renews(self, data: Any) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        owns = writer is self.owner and self.ended is None
        held = Generation.objects.renew({self.run.pk: writer.fence})
        assert held == ({self.run.pk} if owns else set())
        assert self.is_held() or not owns

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def somebody_gives_back(self, data: Any) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        owns = writer is self.owner and self.ended is None
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
        self.writers, self.owner, self.ended = [], None, None
        self.epoch, self.shown, self.shown_seq = 0, "", 0

    def is_held(self) -> bool:
        """Whether a worker that may be alive has the run."""
        held = Generation.objects.filter(status="running", lease_until__gt=Now())
        return held.filter(pk=self.run.pk).exists()

    @rule()
    def the_person_stops(self) -> None:
        was_held = self.is_held()
        self.run.cancel()
        if was_held:
            assert self.row().status == "running"  # its worker hears of it
            assert self.row().cancelled_at
        elif self.ended is None:
            assert self.row().status == "stopped"
            self.ended = "stopped"

    @rule()
    def the_tries_are_counted(self) -> None:
        Generation.objects.fail_exhausted()
        if self.ended is None and self.row().status == "failed":
            assert self.row().fruitless_attempts == Generation.MAX_FRUITLESS_ATTEMPTS
            self.ended = "failed"

    @rule()
    def the_reader_looks(self) -> None:
        for event in self.run.log.read(self.epoch, self.shown_seq):
            assert event.seq == self.shown_seq + 1
            assert event.offset == len(self.shown)
            self.shown += event.text
            self.shown_seq = event.seq

    @invariant()
    def the_log_is_dense_and_what_was_shown_stays(self) -> None:
        if not hasattr(self, "run"):
            return
        events = self.run.log.read(0, 0)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert "".join(event.text for event in events).startswith(self.shown)
        terminal = [event.kind for event in events if event.is_terminal]
        assert terminal == ([self.ended] if self.ended else [])
        assert not terminal or events[-1].is_terminal

    @invariant()
    def the_result_is_the_log(self) -> None:
        if self.ended:
            row = self.row()
            assert row.status == self.ended
            assert row.text == row.log.text()
            tokens = sum(len(bytes(c.token_ids)) // 4 for c in row.chunks.filter(epoch=row.epoch))
            assert tokens == len(bytes(row.token_ids)) // 4
            assert row.completion_tokens == tokens - row.inherited_tokens


@pytest.mark.django_db
def test_a_log_keeps_its_promises_under_any_order_of_events():
    run_state_machine_as_test(
        LogMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
