"""Replicas times pool against what PostgreSQL allows."""

import contextlib

import psycopg
import pytest
from django.db import connection

from chatsite.postgresql import room

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connections to count")


def test_each_process_is_counted_once_and_too_many_are_told() -> None:
    connection.ensure_connection()
    own = connection.connection
    [allowed] = own.execute("SELECT current_setting('max_connections')::int").fetchone()
    each = (allowed - room.KEPT_FOR_STAFF) // 3  # three processes fit
    address = connection.get_connection_params() | {"autocommit": True}
    with contextlib.ExitStack() as others:
        for name in (
            "chatsite pages a 1",
            "chatsite pages a 1",
            "chatsite worker a 2",
            "chatsite realtime a 3",
            "chatsite command a 4",
        ):
            others.enter_context(psycopg.connect(**address | {"application_name": name}))
        assert room.complaint(own, each) == ""
        others.enter_context(
            psycopg.connect(**address | {"application_name": "chatsite worker b 1"})
        )
        said = room.complaint(own, each)
    assert said.startswith(f"4 processes may open {each} connections")
