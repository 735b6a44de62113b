"""Limits that hold when sends come at once."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client

from accounts.models import User
from inference.models import Generation, Release
from tests.chats.conftest import talk

AT_ONCE = 12


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "where", ["/chats/", "/chats/{chat}/messages/", "/messages/{leaf}/versions/"]
)
def test_of_sends_that_come_at_once_no_more_are_taken_than_a_person_may_have(
    alice: User, release: Release, signed_in: Callable[[User], Client], settings: object, where: str
):
    settings.MAX_RUNS_EACH = 3  # type: ignore[attr-defined]
    chats = [talk(alice, 2) for _ in range(AT_ONCE)]
    senders = [(signed_in(alice), where.format(chat=chat.pk, leaf=chat.leaf_id)) for chat in chats]

    def send(sender: tuple[Client, str]) -> int:
        client, url = sender
        data = {"text": "Hi", "client_id": uuid4()}
        try:
            return client.post(url, data, headers={"accept": "application/json"}).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        counted = Counter(pool.map(send, senders))
    assert counted == {HTTPStatus.OK: 3, HTTPStatus.TOO_MANY_REQUESTS: AT_ONCE - 3}
    assert Generation.objects.active().count() == 3
