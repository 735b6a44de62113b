"""Rows 36 and 37 of the fault matrix, over real connections: many equal sends, and lost answers."""

import asyncio
from collections.abc import Iterator
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import pytest
from django.conf import settings as site_settings

from bench.site import Person, Site

pytestmark = pytest.mark.skipif(
    "sqlite" not in site_settings.DATABASES["default"]["ENGINE"],
    reason="serve is the embedded profile: SQLite",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("sending"), "simulated", STATIC_HASHED="0")
    done = made.manage("migrate")
    assert done.returncode == 0, done.stderr
    made.start()
    yield made
    made.stop()


async def test_row_36_twenty_equal_sends_at_once_are_one_message_and_twenty_equal_answers(
    site: Site,
):
    person = await Person(site).arrive()
    fields = {"text": "count 3", "client_id": str(uuid4())}
    answers = await asyncio.gather(*(person.post("/chats/", **fields) for _ in range(20)))
    assert {answer["message"] for answer in answers} == {answers[0]["message"]}
    assert {answer["chat"] for answer in answers} == {answers[0]["chat"]}
    page = (await person.http.get(answers[0]["url"])).text
    assert page.count('class="message message--user"') == 1
    assert page.count('class="message message--assistant"') == 1


async def test_row_37_a_send_whose_answer_was_lost_gives_the_same_ids_when_repeated(site: Site):
    person = await Person(site).arrive()
    before = await person.http.get("/chats/")
    fields = {"text": "count 4", "client_id": str(uuid4())}
    await send_and_hang_up(person, fields)
    await asyncio.sleep(1)
    first = await person.post("/chats/", **fields)
    again = await person.post("/chats/", **fields)
    assert (first["chat"], first["message"]) == (again["chat"], again["message"])
    after = await person.http.get("/chats/")
    assert after.text.count("chat-list__link") == before.text.count("chat-list__link") + 1


async def send_and_hang_up(person: Person, fields: dict[str, str]) -> None:
    """Post a form and close the connection without waiting for the answer."""
    address = urlsplit(person.site.url)
    body = urlencode({"csrfmiddlewaretoken": person.token, **fields})
    cookies = "; ".join(f"{name}={value}" for name, value in person.http.cookies.items())
    head = (
        f"POST /chats/ HTTP/1.1\r\nHost: {address.netloc}\r\nOrigin: {person.site.url}\r\n"
        f"Cookie: {cookies}\r\nAccept: application/json\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write((head + body).encode())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
