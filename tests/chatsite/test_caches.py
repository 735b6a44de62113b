"""The cache that replicas share: with Redis, without it for a while, and with a frozen one."""

import time
from threading import Barrier, Thread
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client

from accounts.models import Count, User
from inference import redis_server
from tests.conftest import PASSWORD
from tests.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh_limits() -> None:
    """The Valkey is empty."""


@pytest.fixture(autouse=True)
def shared(valkey: Valkey, settings: Any) -> None:
    """As the settings make it where there is a REDIS_URL."""
    settings.CACHES = {
        "default": {
            "BACKEND": "chatsite.caches.SharedCache",
            "LOCATION": valkey.url,
            "KEY_PREFIX": "chatsite:cache",
        }
    }
    settings.SESSION_ENGINE = "accounts.cached_sessions"


def go_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(command: Any) -> Any:
        raise redis_server.Away

    monkeypatch.setattr(redis_server.server(), "call", call)


def test_a_count_is_one_for_everybody(valkey: Valkey):
    assert cache.add("n", 1, 60)
    assert not cache.add("n", 1, 60)
    assert cache.incr("n") == 2
    [key] = valkey.client.keys("chatsite:cache:*")
    assert valkey.client.get(key) == b"2"
    assert 0 < valkey.client.ttl(key) <= 60


def test_while_redis_is_away_the_database_counts_and_keeps_the_window(
    monkeypatch: pytest.MonkeyPatch,
):
    go_away(monkeypatch)
    assert cache.add("n", 1, 3600)
    ends = Count.objects.get().expires_at
    assert cache.incr("n") == 2
    assert (Count.objects.get().value, Count.objects.get().expires_at) == (2, ends)
    assert not cache.add("n", 1, 3600)


def test_a_count_that_redis_took_with_it_between_two_steps_goes_on_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
):
    assert cache.add("n", 1, 60)
    go_away(monkeypatch)
    assert (cache.incr("n"), cache.incr("n")) == (1, 2)


def test_a_count_that_a_redis_that_is_back_has_never_heard_of_goes_on_there(
    monkeypatch: pytest.MonkeyPatch, valkey: Valkey
):
    with monkeypatch.context() as away:
        go_away(away)
        assert cache.add("n", 1, 60)
    assert (cache.incr("n"), cache.incr("n")) == (1, 2)
    [key] = valkey.client.keys("chatsite:cache:*")
    assert valkey.client.ttl(key) > 0


def test_nobody_is_refused_because_redis_goes_away_in_the_middle(
    client: Client, monkeypatch: pytest.MonkeyPatch
):
    client.force_login(User.objects.create_user("ada"))
    server, calls = redis_server.server(), iter(range(100))
    ask = server.call

    def call(command: Any) -> Any:
        if next(calls) % 2:
            raise redis_server.Away
        return ask(command)

    monkeypatch.setattr(server, "call", call)
    answers = {client.post("/chats/", {"text": f"hello {n}"}).status_code for n in range(5)}
    assert 429 not in answers


def test_a_count_whose_time_is_over_begins_anew(monkeypatch: pytest.MonkeyPatch):
    go_away(monkeypatch)
    cache.add("n", 5, -1)
    assert cache.get("n") is None
    assert cache.add("n", 1, 60)
    assert cache.get("n") == 1


def test_twenty_at_once_are_counted_as_twenty(monkeypatch: pytest.MonkeyPatch):
    go_away(monkeypatch)
    cache.add("n", 0, 60)
    together = Barrier(20)

    def count() -> None:
        together.wait()
        cache.incr("n")
        connection.close()

    threads = [Thread(target=count) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("n") == 20


def test_what_is_no_count_is_kept_in_redis_alone_and_is_not_run(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    cache.set("copy", {"who": "alice"}, 5)
    [key] = valkey.client.keys("chatsite:cache:*")
    assert valkey.client.get(key) == b'{"who": "alice"}'
    go_away(monkeypatch)
    cache.set("other", {"who": "bob"}, 5)
    assert cache.get("other") is None
    assert not Count.objects.exists()


def test_a_frozen_redis_holds_a_page_up_for_a_second_at_most(
    valkey: Valkey, alice: User, signed_in: Any
):
    client: Client = signed_in(alice)
    assert client.get("/").status_code == 200
    valkey.freeze()
    try:
        started = time.monotonic()
        assert client.get("/").status_code == 200
        assert client.get("/").status_code == 200
        assert time.monotonic() - started < 5
    finally:
        valkey.thaw()


def test_a_log_out_ends_the_session_and_its_copy(valkey: Valkey, alice: User, client: Client):
    assert client.login(username="alice", password=PASSWORD)
    assert client.get("/").context["user"] == alice
    assert valkey.client.keys("chatsite:cache:*session*")
    client.logout()
    assert not valkey.client.keys("chatsite:cache:*session*")


def test_with_redis_away_people_stay_logged_in(
    alice: User, client: Client, monkeypatch: pytest.MonkeyPatch
):
    assert client.login(username="alice", password=PASSWORD)
    go_away(monkeypatch)
    assert client.get("/").context["user"] == alice
