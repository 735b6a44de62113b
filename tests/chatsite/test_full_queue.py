"""A site whose queue is full, and whether what it says of that is true."""

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from bench.reader import Reader
from bench.site import Person, Site, site

LONGEST = 40.0  # seconds: generous beside other tests


@pytest.fixture(scope="module")
def narrow() -> Iterator[Site]:
    with site(MAX_QUEUED="3", WORKER_SLOTS="1", DRAIN_SECONDS="0") as running:
        yield running


async def send(person: Person) -> httpx.Response:
    """An answer of about two seconds."""
    text = "count 40 pace=50"
    return await person.try_post("/chats/", text=text, client_id=str(uuid4()))


async def test_a_refused_send_is_taken_when_it_comes_back_at_the_time_it_was_told(narrow: Site):
    person = await Person(narrow).arrive()
    for _ in range(3):  # so that it is known how long answers take
        await Reader(person, await person.ask("count 40 pace=50")).finish()
    began = time.monotonic()
    while (answer := await send(person)).status_code == 200:
        assert time.monotonic() - began < LONGEST
    refused_at, told = time.monotonic(), int(answer.headers["Retry-After"])
    assert (answer.status_code, answer.json()["error"]["retry_after"]) == (503, told)
    await asyncio.sleep(told)
    assert (await send(person)).status_code == 200
    assert 1 <= told <= 10  # generous: two or three; nobody is sent away for longer than it takes
    while (await send(person)).status_code == 200:  # and then it is full again
        assert time.monotonic() - refused_at < LONGEST
