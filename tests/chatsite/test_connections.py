"""What a site meets on its connections: equal sends, lost answers, cut forms, and hostile ones."""

import asyncio
import contextlib
import random
import struct
import time
import timeit
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import pytest
from django.conf import settings as site_settings

from bench.site import Person, Site
from deploy.sockets import Socket

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


@pytest.mark.parametrize("order", ["text first", "id first"])
async def test_a_form_that_broke_off_is_not_taken_and_its_repeat_is_whole(site: Site, order: str):
    person = await Person(site).arrive()
    text = "echo Please do not delete the file. Please do not delete it."
    fields = {"text": text, "client_id": str(uuid4())}
    if order == "id first":
        fields = dict(reversed(fields.items()))
    before = (await person.http.get("/chats/")).text.count("chat-list__link")
    await send_and_hang_up(person, fields, cut=20)
    await asyncio.sleep(1)
    assert (await person.http.get("/chats/")).text.count("chat-list__link") == before
    made = await person.post("/chats/", **fields)
    assert text in (await person.http.get(made["url"])).text


async def test_a_connection_that_never_ends_its_headers_is_closed(site: Site):
    lines = []
    for _ in range(20):
        reader, writer = await open_line(site.url)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        lines.append((reader, writer))
    async with asyncio.timeout(20):  # after ten
        assert await asyncio.gather(*(reader.read() for reader, _ in lines)) == [b""] * 20
    for _, writer in lines:
        writer.close()


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 4096, 65_537])
def test_a_frame_is_unmasked_as_the_standard_says_and_in_a_moment(size: int):
    socket, mask = object.__new__(Socket), b"\x00\xff\x5a\x01"
    payload = random.Random(size).randbytes(size)

    def plain() -> bytes:
        return bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))

    def ours() -> bytes:
        return socket._unmask(payload, mask)

    assert ours() == plain()
    if size > 65_000:  # the best of several: a neighbour may take the core in any one
        assert min(timeit.repeat(ours, number=1, repeat=9)) < timeit.timeit(plain, number=1) / 3


@pytest.mark.parametrize("opcode", [0x00, 0x89, 0x8A], ids=["continuation", "ping", "pong"])
async def test_a_flood_of_empty_frames_ends_the_socket_and_holds_up_nobody(site: Site, opcode: int):
    person = await Person(site).arrive()
    frame = struct.pack("!BB4x", opcode, 0x80)
    async with asyncio.timeout(20), socket_of(person) as (reader, writer):
        writer.write(BEGUN + frame * 250)
        heard = await reader.read()
    assert struct.pack("!H", 1008) + b"Too many frames" in heard
    async with asyncio.timeout(20), socket_of(person) as (reader, writer):
        writer.write(BEGUN)
        flood = asyncio.create_task(keep_writing(writer, frame))
        slowest = 0.0
        while not flood.done():
            asked_at = time.monotonic()
            assert (await person.http.get("/livez")).status_code == 200
            slowest = max(slowest, time.monotonic() - asked_at)
    assert slowest < 1


async def test_a_socket_at_an_address_that_is_none_is_refused_without_a_traceback(site: Site):
    person = await Person(site).arrive()
    reader, writer = await open_line(site.url)
    writer.write(handshake(person, "/wss/"))
    assert (await reader.readline()).split()[1] == b"403"
    writer.close()
    assert "Traceback" not in (site.data / "serve.log").read_text()


BEGUN = struct.pack("!BB4x", 0x01, 0x81) + b"x"  # a text that goes on


async def keep_writing(writer: asyncio.StreamWriter, frame: bytes) -> None:
    """Until the other side has had enough of it."""
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(frame * 1000)
            await writer.drain()
            await asyncio.sleep(0.004)


async def open_line(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


def handshake(person: Person, path: str) -> bytes:
    host = urlsplit(person.site.url).netloc
    head = [
        f"GET {path} HTTP/1.1", f"Host: {host}", f"Origin: {person.site.url}",
        "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Cookie: {person.cookies}",
    ]  # fmt: skip
    return "\r\n".join([*head, "", ""]).encode()


@contextlib.asynccontextmanager
async def socket_of(
    person: Person,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await open_line(person.site.url)
    writer.write(handshake(person, "/ws/"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    yield reader, writer
    writer.close()


async def send_and_hang_up(person: Person, fields: dict[str, str], cut: int = 0) -> None:
    """Post a form, but for its last `cut` bytes, and close the connection without waiting."""
    host = urlsplit(person.site.url).netloc
    body = urlencode({"csrfmiddlewaretoken": person.token, **fields})
    cookies = "; ".join(f"{name}={value}" for name, value in person.http.cookies.items())
    head = (
        f"POST /chats/ HTTP/1.1\r\nHost: {host}\r\nOrigin: {person.site.url}\r\n"
        f"Cookie: {cookies}\r\nAccept: application/json\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    )
    _, writer = await open_line(person.site.url)
    writer.write((head + body[: len(body) - cut]).encode())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
