"""manage.py migrate while people use the tables; tests/cluster has it under load."""

from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.core.management.commands import migrate as django_migrate
from django.db import OperationalError

from chatsite.management.commands import migrate

pytestmark = pytest.mark.django_db


class Tables:
    """Raises these errors, one a call, then has nothing against it."""

    def __init__(self, *errors: type[psycopg.Error]) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *args: Any, **options: Any) -> None:
        self.calls += 1
        if self.errors:
            raise OperationalError("not now") from self.errors.pop(0)()


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "PAUSE_SECONDS", (0.0, 0.0))


def migrate_with(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(django_migrate.Command, "handle", lambda self, *a, **o: tables(*a, **o))
    call_command("migrate", interactive=False, verbosity=0)


def test_a_table_in_use_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    tables = Tables(psycopg.errors.LockNotAvailable, psycopg.errors.LockNotAvailable)
    migrate_with(tables, monkeypatch)
    assert tables.calls == 3


def test_a_table_that_stays_in_use_is_given_up_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.0)
    tables = Tables(*[psycopg.errors.LockNotAvailable] * 9)
    with pytest.raises(CommandError, match="pg_stat_activity"):
        migrate_with(tables, monkeypatch)
    assert tables.calls == 2


def test_patience_begins_anew_with_each_migration_that_is_applied(monkeypatch: pytest.MonkeyPatch):
    """One that takes long must not use up that of the next."""
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.0)
    applied = iter(range(9))
    monkeypatch.setattr(migrate, "how_many_applied", lambda database: next(applied))
    tables = Tables(*[psycopg.errors.LockNotAvailable] * 5)
    migrate_with(tables, monkeypatch)
    assert tables.calls == 6


@pytest.mark.parametrize("error", [psycopg.errors.DiskFull, psycopg.errors.DeadlockDetected])
def test_any_other_trouble_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, error: type[psycopg.Error]
):
    """A deadlock too: it may have left an index half made."""
    tables = Tables(error)
    with pytest.raises(OperationalError):
        migrate_with(tables, monkeypatch)
    assert tables.calls == 1
