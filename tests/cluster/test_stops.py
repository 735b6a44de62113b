"""Row 38: stops in every state of an answer, from anywhere, and with Redis down.

A stop has to take effect soon (the last token within 300 ms of the request, 1.2 s with Redis
down, for 95 of 100), to end the answer once, and for good.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import pytest
from redis import Redis

from bench.cluster import Cluster
from bench.faults import stopped
from bench.reader import Reader
from bench.site import Person, watch
from tests.cluster.conftest import needs_nginx
from tests.faults.workers import ALL

pytestmark = needs_nginx
STOPS = 20 if ALL else 5
LIMIT, WITHOUT_REDIS = 0.3, 1.2  # seconds to the last token
SLACK = 1 if ALL else 2  # generous: of a few stops the worst counts, beside others' work
AGAIN_SECONDS = 3.0  # more than the two after which every worker has looked at the queue
LONG = "count 2000 pace=100"


@dataclass
class Stop:
    """One answer that was stopped, as its reader saw it."""

    reader: Reader
    acknowledged: float = 0.0  # seconds after the request, as are the next two
    last_token: float = 0.0  # 0: none came any more
    ended: float = 0.0


Ask = Callable[[Person, str], Awaitable[None]]


async def stop(person: Person, generation: str, url: str = "") -> None:
    """From the browser, or to one replica of the pages."""
    there = url or person.site.url
    answer = await person.http.post(
        f"{there}/generations/{generation}/",
        data={"csrfmiddlewaretoken": person.token, "_method": "delete"},
        headers={"Accept": "application/json", "Origin": there},
    )
    assert answer.status_code == 200, answer.text


async def stopped_at(
    person: Person, text: str, until: Callable[[Reader], object],
    on: str = "", how: Ask = stop,
) -> Stop:  # fmt: skip
    """Ask, read on that replica, stop as soon as `until` is true, read to the end."""
    reader = Reader(person, await person.ask(text))
    found = Stop(reader)
    asked_at = math.inf

    async def read() -> None:
        async with person.socket(on) as socket:
            async for frame in watch(socket, reader.generation):
                reader.take(frame)
                if frame["type"] == "delta":
                    found.last_token = max(0.0, time.monotonic() - asked_at)
        found.ended = time.monotonic() - asked_at

    async with asyncio.timeout(60):
        reading = asyncio.create_task(read())
        while not until(reader) and not reading.done():
            await asyncio.sleep(0.005)
        asked_at = time.monotonic()
        await how(person, reader.generation)
        found.acknowledged = time.monotonic() - asked_at
        await reading
    return found


def worst_of_95_in_100(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


def judge(cluster: Cluster, stops: list[Stop], limit: float) -> None:
    """Each ended as stopped with the text that was shown, soon, and is not taken up again."""
    time.sleep(AGAIN_SECONDS)
    for one in stops:
        assert one.reader.status == "stopped"
        assert in_database(cluster, one.reader.generation) == ("stopped", one.reader.text)
    assert worst_of_95_in_100([one.last_token for one in stops]) <= SLACK * limit
    assert worst_of_95_in_100([one.ended for one in stops]) <= SLACK * (limit + 0.2)


def in_database(cluster: Cluster, generation: str) -> tuple[str, str]:
    query = "SELECT status, text FROM inference_generation WHERE id = %s"
    with psycopg.connect(cluster.database_url) as own:
        status, text = own.execute(query, [generation]).fetchone() or ("", "")
    return status, text


def is_claimed(cluster: Cluster) -> Callable[[Reader], bool]:
    """Asked of the database each time: no frame tells it."""

    def look(reader: Reader) -> bool:
        return in_database(cluster, reader.generation)[0] == "running"

    return look


def has_text(reader: Reader) -> bool:
    return len(reader.text) > 20


def pages_of(cluster: Cluster) -> list[str]:
    port = urlsplit(cluster.url).port or 0
    return [f"http://127.0.0.1:{port + n}" for n in (1, 2)]


# --- in every state -----------------------------------------------------------------------
async def test_row_38_a_stop_in_the_queue_ends_it_and_no_worker_takes_it(cluster: Cluster):
    person = await Person(cluster).arrive()
    with stopped(cluster.pids_of("worker")):
        stops = [await stopped_at(person, LONG, lambda reader: True) for _ in range(STOPS)]
    judge(cluster, stops, LIMIT)
    assert {one.reader.text for one in stops} == {""}
    with psycopg.connect(cluster.database_url) as own:
        query = "SELECT max(attempts) FROM inference_generation WHERE id = ANY(%s::uuid[])"
        assert own.execute(query, [[o.reader.generation for o in stops]]).fetchone() == (0,)


async def test_row_38_a_stop_in_prefill_ends_it_without_text(cluster: Cluster):
    person = await Person(cluster).arrive()
    claimed = is_claimed(cluster)
    stops = [await stopped_at(person, "count 9 prefill=30", claimed) for _ in range(STOPS)]
    judge(cluster, stops, LIMIT)
    assert {one.reader.text for one in stops} == {""}


async def test_row_38_a_stop_in_decode_keeps_what_was_shown(cluster: Cluster):
    person = await Person(cluster).arrive()
    stops = [await stopped_at(person, LONG, has_text) for _ in range(STOPS)]
    judge(cluster, stops, LIMIT)
    for one in stops:
        assert " ".join(map(str, range(1, 2001))).startswith(one.reader.text)


async def test_row_38_a_stop_after_the_end_changes_nothing(cluster: Cluster):
    person = await Person(cluster).arrive()
    done = await stopped_at(person, "count 3", lambda reader: reader.status)
    assert (done.reader.status, done.reader.text) == ("done", "1 2 3")
    await stop(person, done.reader.generation)
    await asyncio.sleep(AGAIN_SECONDS)
    assert in_database(cluster, done.reader.generation) == ("done", "1 2 3")
    again = Reader(person, done.reader.generation)
    await again.finish()
    assert (again.status, again.text) == ("done", "1 2 3")


async def test_row_38_two_stops_at_once_are_one(cluster: Cluster):
    async def twice(person: Person, generation: str) -> None:
        await asyncio.gather(*(stop(person, generation, url) for url in pages_of(cluster)))
        await stop(person, generation)

    person = await Person(cluster).arrive()
    stops = [await stopped_at(person, LONG, has_text, how=twice) for _ in range(STOPS)]
    judge(cluster, stops, LIMIT)


# --- from anywhere ------------------------------------------------------------------------
async def test_row_38_a_stop_at_any_replica_ends_it_on_every_other(cluster: Cluster):
    person = await Person(cluster).arrive()
    stops = []
    for number in range(STOPS):
        pages, realtime = pages_of(cluster)[number % 2], cluster.replicas[number // 2 % 2]

        async def there(person: Person, generation: str, url: str = pages) -> None:
            await stop(person, generation, url)

        stops.append(await stopped_at(person, LONG, has_text, realtime, there))
    judge(cluster, stops, LIMIT)


# --- with Redis down ----------------------------------------------------------------------
@contextlib.contextmanager
def redis_out_of_reach(cluster: Cluster) -> Iterator[None]:
    """It is not started again as a killed one would be: nobody finds its socket."""
    path = cluster.folder / "valkey" / "valkey.sock"
    hidden = path.rename(path.with_name("hidden.sock"))
    client = Redis(unix_socket_path=str(hidden))
    try:
        for kind in ("normal", "pubsub"):
            client.client_kill_filter(_type=kind, skipme=True)
        yield
    finally:
        hidden.rename(path)


@pytest.mark.parametrize("question", [LONG, "count 9 prefill=30"], ids=["decode", "prefill"])
async def test_row_38_a_stop_with_redis_down_takes_a_second(cluster: Cluster, question: str):
    people = [await Person(cluster).arrive() for _ in range(4)]
    until = has_text if question == LONG else is_claimed(cluster)

    async def some(person: Person) -> list[Stop]:
        return [await stopped_at(person, question, until) for _ in range(max(1, STOPS // 4))]

    with redis_out_of_reach(cluster):
        stops = [one for found in await asyncio.gather(*map(some, people)) for one in found]
    judge(cluster, stops, WITHOUT_REDIS)


async def test_row_38_a_stop_at_the_moment_when_redis_goes_away(cluster: Cluster):
    async def without_it(person: Person, generation: str) -> None:
        with redis_out_of_reach(cluster):
            await stop(person, generation)
            await asyncio.sleep(2)

    person = await Person(cluster).arrive()
    stops = [await stopped_at(person, LONG, has_text, how=without_it) for _ in range(STOPS // 4)]
    judge(cluster, stops, WITHOUT_REDIS)
