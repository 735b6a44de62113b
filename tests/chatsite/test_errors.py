"""Errors that no view has answered come in the shape the client asked for."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from accounts.models import User

pytestmark = pytest.mark.django_db


def nowhere(client: Client, accept: str) -> Any:
    return client.get("/nowhere/", headers={"accept": accept})


def without_boundary(client: Client, accept: str) -> Any:
    kind = "multipart/form-data"
    return client.generic("POST", "/chats/", b"x", content_type=kind, headers={"accept": accept})


def too_many_fields(client: Client, accept: str) -> Any:
    fields = {str(number): "" for number in range(2000)}
    return client.post("/chats/", fields, headers={"accept": accept})


def without_token(client: Client, accept: str) -> Any:
    strict = Client(enforce_csrf_checks=True)
    return strict.post("/chats/", {"text": "Hi"}, headers={"accept": accept})


def broken(client: Client, accept: str) -> Any:
    def break_off(*_: object) -> None:
        raise ZeroDivisionError

    client.force_login(User.objects.get_or_create(username="ada")[0])
    client.raise_request_exception = False
    with connection.execute_wrapper(break_off):
        return client.get("/", headers={"accept": accept})


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        (nowhere, HTTPStatus.NOT_FOUND, "not_found"),
        (without_boundary, HTTPStatus.BAD_REQUEST, "bad_request"),
        (too_many_fields, HTTPStatus.BAD_REQUEST, "bad_request"),
        (without_token, HTTPStatus.FORBIDDEN, "csrf"),
        (broken, HTTPStatus.INTERNAL_SERVER_ERROR, "failed"),
    ],
)
def test_an_error_is_a_page_or_json_as_the_client_asked(
    client: Client, ask: Callable[[Client, str], Any], status: HTTPStatus, code: str
):
    told = ask(client, "application/json")
    assert (told.status_code, told.json()["error"]["code"]) == (status, code)
    assert told.json()["error"]["message"].endswith(".")
    page = ask(client, "text/html")
    assert (page.status_code, page["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert "no-store" in page["Cache-Control"]
