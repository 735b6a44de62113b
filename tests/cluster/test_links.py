"""Bad lines to a real cluster, and what people do when one breaks: ask again."""

import asyncio
import contextlib
import random
import time
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import psycopg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from bench.cluster import Cluster
from bench.faults import connections_ended, stopped
from bench.proxy import Proxy
from bench.reader import Reader
from bench.site import Person, found_generation, watch
from tests.chatsite.test_serve import COUNT, COUNTED
from tests.cluster.conftest import begin, needs_nginx
from tests.faults.workers import ALL

pytestmark = needs_nginx


def line_to(cluster: Cluster, seed: int = 1) -> Proxy:
    return Proxy(urlsplit(cluster.url).port or 0, seed=seed)


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
async def test_row_17_a_frozen_redis_holds_up_neither_sockets_nor_an_answer(cluster: Cluster):
    seconds = 10
    reader = await begin(cluster, "count 250 pace=60")
    async with reader.person.socket(cluster.replicas[0]) as probe:
        with stopped(cluster.pids_of("valkey")):
            before = len(reader.text)
            reading = asyncio.create_task(reader.finish(cluster.replicas[0]))
            pings = await _pings(probe, seconds)
            came = len(reader.text) - before
        await reading
    assert max(pings) < 0.1
    assert came > 20 * seconds  # of 60 characters a second, less the second of the wait
    assert (reader.text, reader.status) == (" ".join(map(str, range(1, 251))), "done")
    assert reader.longest_pause < 1.5


async def _pings(probe: ClientConnection, seconds: float) -> list[float]:
    """How long each of them took: what the process's event loop needs for its smallest job."""
    took = []
    until = time.monotonic() + seconds
    while (sent := time.monotonic()) < until:
        await (await probe.ping())
        took.append(time.monotonic() - sent)
        await asyncio.sleep(0.06)  # faster, and it is shown out
    return took


async def test_row_22_connections_that_are_ended_again_and_again_leave_nothing_stuck(
    cluster: Cluster,
):
    reader = await begin(cluster, "count 200 pace=60")
    asking = asyncio.create_task(_ask_patiently(reader.person, 6))
    for _ in range(3):
        await asyncio.to_thread(connections_ended, cluster, random.Random(1))
    texts = await asking
    await reader.finish()
    assert (reader.text, reader.status) == (" ".join(map(str, range(1, 201))), "done")
    assert texts == ["1 2 3"] * 6


async def _ask_patiently(person: Person, count: int) -> list[str]:
    texts = []
    for _ in range(count):
        fields = {"text": "count 3", "client_id": str(uuid4())}
        while (answer := await person.try_post("/chats/", **fields)).status_code == 503:
            await asyncio.sleep(0.2)
        reader = Reader(person, found_generation(answer.json()))
        await reader.finish()
        texts.append(reader.text)
    return texts


async def test_row_24_with_no_connection_left_requests_are_told_at_once_and_sockets_live(
    cluster: Cluster,
):
    person = await Person(cluster).arrive()
    async with person.socket() as socket:
        with contextlib.ExitStack() as taken:
            _take_every_connection(cluster, taken)
            started = time.monotonic()
            answer = await person.try_post("/chats/", text="count 3", client_id=str(uuid4()))
            assert time.monotonic() - started < (1 if ALL else 3)  # generous beside other tests
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        generation = await _until_taken(person)
        async with asyncio.timeout(30):
            frames = [frame async for frame in watch(socket, generation)]
    assert frames[-1]["status"] == "done"


def _take_every_connection(cluster: Cluster, taken: contextlib.ExitStack) -> None:
    """Those the site has as well: they are ended, and taken before it asks for them again."""
    first = taken.enter_context(psycopg.connect(cluster.database_url, autocommit=True))
    own = [first.info.backend_pid]
    alone = 0
    while alone < 5:  # times in a row: what is told to end takes a moment, and comes back
        first.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> ALL(%s) AND backend_type = 'client backend'",
            [own],
        )
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                more = taken.enter_context(psycopg.connect(cluster.database_url, autocommit=True))
                own.append(more.info.backend_pid)
        [others] = first.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE pid <> ALL(%s) AND backend_type = 'client backend'",
            [own],
        ).fetchone() or [0]
        alone = 0 if others else alone + 1
        time.sleep(0.1)


async def _until_taken(person: Person) -> str:
    fields = {"text": "count 3", "client_id": str(uuid4())}
    while (answer := await person.try_post("/chats/", **fields)).status_code == 503:
        await asyncio.sleep(0.1)
    return found_generation(answer.json())


async def test_row_25_a_chat_that_somebody_locks_gets_its_message_once(cluster: Cluster):
    reader = await begin(cluster, "count 3", until=1)
    await reader.finish()
    person = reader.person
    with psycopg.connect(cluster.database_url) as own:
        query = (
            "SELECT c.id FROM chats_chat c JOIN chats_message m ON m.chat_id = c.id"
            " WHERE m.generation_id = %s FOR UPDATE OF c"
        )
        [chat] = own.execute(query, [reader.generation]).fetchone() or [None]
        fields = {"text": "count 4", "client_id": str(uuid4())}
        path = f"/chats/{chat}/messages/"
        sends = [asyncio.create_task(person.try_post(path, **fields)) for _ in range(3)]
        await asyncio.sleep(1)
        assert not any(send.done() for send in sends)
        own.rollback()
        answers = await asyncio.gather(*sends)
        count = "SELECT count(*) FROM chats_message WHERE client_id = %s"
        messages = own.execute(count, [fields["client_id"]]).fetchone()
    assert {answer.status_code for answer in answers} == {200}
    assert messages == (1,)


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
async def test_row_25_an_end_that_waits_for_a_locked_chat_holds_up_no_other_answer(
    cluster: Cluster,
):
    locked = await begin(cluster, "count 100 pace=60", until=1)
    others = [await begin(cluster, "count 250 pace=40", until=1) for _ in range(4)]
    with psycopg.connect(cluster.database_url) as own:
        query = (
            "SELECT 1 FROM chats_chat c JOIN chats_message m ON m.chat_id = c.id"
            " WHERE m.generation_id = %s FOR UPDATE OF c"
        )
        own.execute(query, [locked.generation])
        await asyncio.gather(*(other.finish() for other in others))  # longer than a lease
        assert not locked.status
        own.rollback()
    await locked.finish()
    assert (locked.text, locked.status) == (" ".join(map(str, range(1, 101))), "done")
    assert {(other.text, other.status) for other in others} == {
        (" ".join(map(str, range(1, 251))), "done")
    }
    assert await asyncio.to_thread(_changes_of_hands, cluster, others) == 0
    assert max(other.longest_pause for other in others) < 5  # generous: half a lease


def _changes_of_hands(cluster: Cluster, readers: list[Reader]) -> int:
    with psycopg.connect(cluster.database_url) as own:
        query = "SELECT sum(fence - 1) FROM inference_generation WHERE id = ANY(%s::uuid[])"
        [found] = own.execute(query, [[r.generation for r in readers]]).fetchone() or [-1]
    return int(found)


# At most so many bytes in a piece (0: as they come), and seconds for each. Both at their worst are
# a line of twenty bytes a second.
LINES = {"torn": (40, 0.02)} | ({"late": (0, 2.0)} if ALL else {})


@pytest.mark.parametrize("how", LINES)
async def test_row_34_a_torn_late_and_cut_line_brings_the_exact_text(cluster: Cluster, how: str):
    person = await Person(cluster).arrive()
    async with line_to(cluster) as line:
        (line.slice, line.jitter), line.cuts = LINES[how], 0.3
        reader = Reader(person, await person.ask(COUNT))
        await reader.finish(line.url)
    assert (reader.text, reader.status) == (COUNTED, "done")


async def test_row_36_twenty_equal_sends_at_once_are_one_message(cluster: Cluster):
    person = await Person(cluster).arrive()
    fields = {"text": "count 3", "client_id": str(uuid4())}
    answers = await asyncio.gather(*(person.try_post("/chats/", **fields) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({found_generation(answer.json()) for answer in answers}) == 1
    assert len({answer.json()["chat"] for answer in answers}) == 1


async def test_row_37_a_send_whose_answer_was_lost_is_taken_once(cluster: Cluster):
    person = await Person(cluster).arrive()
    fields = {"text": "count 3", "client_id": str(uuid4()), "csrfmiddlewaretoken": person.token}
    headers = {"Accept": "application/json", "Origin": cluster.url}
    async with line_to(cluster) as line:
        line.keeps_answers = True
        async with httpx.AsyncClient(cookies=person.http.cookies) as lost:
            headers["Host"] = urlsplit(cluster.url).netloc
            with contextlib.suppress(httpx.TransportError):
                await lost.post(f"{line.url}/chats/", data=fields, headers=headers)
                raise AssertionError("the line did not break")
    async with asyncio.timeout(10):
        while await _chats(person) < 2:  # with the one of the arrival: it was taken
            await asyncio.sleep(0.1)
    again = [await person.try_post("/chats/", **fields) for _ in range(2)]
    assert len({found_generation(answer.json()) for answer in again}) == 1
    assert await _chats(person) == 2


async def _chats(person: Person) -> int:
    return (await person.http.get("/")).text.count('class="sidebar__chat"')


async def test_row_42_an_event_storm_is_at_most_forty_frames_a_second(cluster: Cluster):
    person = await Person(cluster).arrive()
    arrived: list[float] = []
    async with person.socket() as socket:
        async for frame in watch(socket, await person.ask("count 400 pace=2000")):
            if frame["type"] == "delta":
                arrived.append(time.monotonic())
    seconds = max(arrived[-1] - arrived[0], 0.1)
    assert 5 < len(arrived) < 45 * seconds


async def test_row_32_a_half_open_reader_comes_back_to_its_answer(cluster: Cluster):
    person = await Person(cluster).arrive()
    async with line_to(cluster) as line:
        reader = Reader(person, await person.ask("count 200 pace=60"))
        await reader.read(40, line.url)
        with contextlib.suppress(TimeoutError, OSError, WebSocketException):
            async with asyncio.timeout(2):
                line.is_hole = True
                await reader.read(url=line.url)
        await reader.finish()
    assert reader.status == "done"
    assert reader.text == " ".join(map(str, range(1, 201)))
