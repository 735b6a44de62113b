"""/livez says the process lives; /readyz says whether to send it anything."""

import pytest
from django.db import OperationalError

from chatsite import health

pytestmark = pytest.mark.django_db


def test_a_living_process_says_so(client):
    assert client.get("/livez").json() == {"status": "alive"}


def test_a_ready_process_lists_its_checks(client):
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"] == {"database": "ok", "migrations": "ok", "draining": "ok"}


def test_a_draining_process_wants_nothing_new(client):
    health.draining.set()
    try:
        answer = client.get("/readyz")
    finally:
        health.draining.clear()
    assert answer.status_code == 503
    assert "about to end" in answer.json()["checks"]["draining"]


def test_without_a_database_it_is_not_ready_but_lives(client, monkeypatch):
    def fails() -> None:
        raise OperationalError("gone, at a secret address")

    monkeypatch.setitem(health.CHECKS, "database", fails)
    answer = client.get("/readyz")
    assert (answer.status_code, client.get("/livez").status_code) == (503, 200)
    assert "secret" not in answer.content.decode()


def test_waiting_migrations_are_named_and_looked_for_again(client, monkeypatch):
    health._is_migrated.cache_clear()
    plan = "django.db.migrations.executor.MigrationExecutor.migration_plan"
    with monkeypatch.context() as patched:
        patched.setattr(plan, lambda *_: ["one"])
        assert client.get("/readyz").status_code == 503
    assert client.get("/readyz").status_code == 200
