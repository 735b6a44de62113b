"""Replicas times pool against what PostgreSQL allows."""

import contextlib
import time
from typing import Any

import psycopg
import pytest
from django.db import InternalError, connection

from accounts.models import User
from chatsite.away import is_away
from chatsite.postgresql import room

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connections to count")


def address() -> dict[str, Any]:
    found = connection.get_connection_params()
    return {name: value for name, value in found.items() if name != "application_name"}


def test_each_process_is_counted_once_and_too_many_are_told() -> None:
    connection.ensure_connection()
    own = connection.connection
    [allowed] = own.execute("SELECT current_setting('max_connections')::int").fetchone()
    each = (allowed - room.KEPT_FOR_STAFF) // 3  # three processes fit
    with contextlib.ExitStack() as others:
        for name in (
            "chatsite pages a 1",
            "chatsite pages a 1",
            "chatsite worker a 2",
            "chatsite realtime a 3",
            "chatsite command a 4",
        ):
            others.enter_context(psycopg.connect(**address(), application_name=name))
        assert room.complaint(own, each) == ""
        others.enter_context(psycopg.connect(**address(), application_name="chatsite worker b 1"))
        said = room.complaint(own, each)
    assert said.startswith(f"4 processes may open {each} connections")


def test_a_role_that_is_frozen_in_a_transaction_gives_its_rows_free(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROLE", "worker")
    monkeypatch.setattr(room, "IDLE_SECONDS", 1)
    frozen = psycopg.connect(**address() | room.limits())
    lock = "SELECT 1 FROM accounts_user FOR UPDATE"
    frozen.execute(lock)
    asked_at = time.monotonic()
    with psycopg.connect(**address()) as another:
        another.execute(lock)
    assert 0.5 < time.monotonic() - asked_at < 5
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout) as ended:
        frozen.execute("SELECT 1")
    told = InternalError("as Django passes it on")
    told.__cause__ = ended.value
    assert is_away(told)


def test_a_role_does_not_wait_long_for_a_locked_row(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROLE", "worker")
    lock = "SELECT 1 FROM accounts_user FOR UPDATE"
    with (
        psycopg.connect(**address()) as somebody,
        psycopg.connect(**address() | room.limits()) as own,
    ):
        somebody.execute(lock)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            own.execute(lock)


def test_commands_have_no_limits_and_an_operators_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROLE", "")
    assert room.limits() == {}
    assert room.limits("-c work_mem=8MB") == {"options": "-c work_mem=8MB"}
    monkeypatch.setattr(room, "ROLE", "pages")
    with psycopg.connect(**address() | room.limits("-c lock_timeout=7s")) as own:
        assert own.execute("SHOW lock_timeout").fetchone() == ("7s",)
        assert own.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("10s",)
