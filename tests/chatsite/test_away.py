"""A database that is away: reads are tried again, the rest hears when to come back."""

import logging
import time
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection
from django.test import Client

from accounts.models import User
from chats.models import Chat, Message
from chatsite.logs import NowAndThen
from inference.models import Release


def away(*args: Any) -> None:
    raise OperationalError("the connection was closed")


@pytest.fixture
def client() -> Client:
    return Client(raise_request_exception=False)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("address", ["/", "/admin/", "/admin/accounts/user/"])
def test_a_page_is_answered_although_its_connection_was_ended(client: Client, address: str):
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connections that somebody else may end")
    client.force_login(User.objects.create_superuser("ada"))
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    with psycopg.connect(**connection.get_connection_params()) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [pid])
    answer = client.get(address)
    assert answer.status_code == 200
    assert "ada" in answer.content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_page_says_that_it_tries_again_by_itself(client: Client):
    client.force_login(User.objects.create_user("ada"))
    with connection.execute_wrapper(away):
        answer = client.get("/")
    assert answer.status_code == 503
    assert answer["Retry-After"] == "5"
    assert '<meta http-equiv="refresh" content="5">' in answer.content.decode()


@pytest.mark.django_db
def test_a_program_hears_it_as_json_and_a_form_without_a_repeat(client: Client):
    client.force_login(User.objects.create_user("ada"))
    with connection.execute_wrapper(away):
        answer = client.post("/chats/", {"text": "hello"}, headers={"Accept": "application/json"})
        page = client.post("/chats/", {"text": "hello"}, headers={"Accept": "text/html"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "away")
    assert page.status_code == 503
    assert "refresh" not in page.content.decode()


@pytest.mark.django_db
def test_other_errors_stay_errors(client: Client, monkeypatch: pytest.MonkeyPatch):
    def wrong(*args: Any) -> None:
        raise ValueError

    client.force_login(User.objects.create_user("ada"))
    with connection.execute_wrapper(wrong):
        answer = client.get("/")
    assert answer.status_code == 500
    assert "Retry-After" not in answer


@pytest.mark.django_db
def test_a_statement_that_can_never_succeed_is_no_reason_to_come_back(client: Client):
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL has errors of another class for these")

    def broken(execute: Any, sql: str, *args: Any) -> Any:
        return execute("SELECT * FROM nowhere", None, *args[1:])

    client.force_login(User.objects.create_user("ada"))
    with connection.execute_wrapper(broken):
        assert client.get("/").status_code == 500


@pytest.mark.django_db(transaction=True)
def test_row_26_a_full_disk_is_told_and_leaves_nothing_half_done(
    client: Client, release: Release, settings: Any
):
    if connection.vendor != "sqlite":
        pytest.skip("a limit on its pages stands for the full disk of SQLite")
    client.force_login(User.objects.create_user("ada"))
    settings.MODEL = release.model.slug
    json = {"Accept": "application/json"}
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # what earlier tests have left would be room, too
        cursor.execute("PRAGMA page_count")
        [pages] = cursor.fetchone()
        cursor.execute(f"PRAGMA max_page_count = {pages}")
        taken = 0
        while (
            answer := client.post("/chats/", {"text": "x" * 8000}, headers=json)
        ).status_code == 200:
            taken += 1
        cursor.execute("PRAGMA max_page_count = 1000000000")
        cursor.execute("PRAGMA integrity_check")
        assert cursor.fetchone() == ("ok",)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "away")
    assert Chat.objects.count() == Message.objects.filter(role="user").count() == taken
    assert client.post("/chats/", {"text": "again"}, headers=json).status_code == 200


def test_what_each_attempt_would_tell_is_told_now_and_then(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("test.now-and-then")
    logger.addFilter(NowAndThen(0.2))
    for number in range(3):
        logger.warning("error connecting: %s", number)
        logger.warning("something else")
    time.sleep(0.25)
    logger.warning("error connecting: %s", 9)
    assert [record.getMessage() for record in caplog.records] == [
        "error connecting: 0", "something else", "error connecting: 9",
    ]  # fmt: skip
