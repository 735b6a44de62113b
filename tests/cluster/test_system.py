"""What the system itself refuses: files, memory, a disk that fails or is full."""

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from bench import scale
from bench.cluster import Cluster
from bench.faults import files_limited
from bench.proxy import Proxy
from bench.reader import Reader
from bench.site import Person, descendants
from tests.cluster.conftest import begin, needs_nginx
from tests.faults.workers import ALL

pytestmark = [
    *needs_nginx,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux: limits of others"),
]
ESTABLISHED, CLOSE_WAIT = "01", "08"  # of /proc/net/tcp
KEPT = 64  # deploy/sockets.py


def serving(cluster: Cluster) -> list[int]:
    """The processes that serve sockets, below the first of each replica."""
    return [below for pid in cluster.pids_of("realtime") for below in descendants(pid)]


async def opened(
    person: Person, url: str, stack: contextlib.AsyncExitStack, seconds: float = 20
) -> int:
    """One more socket that stays open; the status of the answer, 0 when there was none."""
    try:
        async with asyncio.timeout(seconds):
            await stack.enter_async_context(person.socket(url))
    except InvalidStatus as refused:
        return refused.response.status_code
    except (OSError, WebSocketException):
        return 0
    return 101


@contextlib.asynccontextmanager
async def open_meanwhile(cluster: Cluster) -> AsyncIterator[tuple[Person, list[str]]]:
    """Somebody reads an answer all the while, on one socket of each replica and to the end."""
    person = await Person(cluster).arrive()
    generation = await person.ask("count 200 pace=80")
    readers = [Reader(person, generation) for _ in cluster.replicas]
    reading = [
        asyncio.create_task(reader.read(url=url))
        for reader, url in zip(readers, cluster.replicas, strict=True)
    ]
    while not all(len(reader.text) > 20 for reader in readers):
        await asyncio.sleep(0.05)
    yield person, [cluster.url, *cluster.replicas]
    assert not any(reader.status for reader in readers), "it ended too soon to tell"
    await asyncio.gather(*reading)
    assert max(reader.longest_pause for reader in readers) < 2  # generous: 0.13 is usual
    counted = " ".join(map(str, range(1, 201)))
    assert {(reader.text, reader.status) for reader in readers} == {(counted, "done")}


async def test_row_31_short_of_files_new_sockets_hear_503_and_old_ones_live(cluster: Cluster):
    async with (
        open_meanwhile(cluster) as (person, everywhere),
        contextlib.AsyncExitStack() as stack,
    ):
        with files_limited(serving(cluster), KEPT + 10):
            statuses = [await opened(person, url, stack) for _ in range(20) for url in everywhere]
            async with httpx.AsyncClient() as client:
                answers = [(await client.get(f"{url}/readyz")).status_code for url in everywhere]
        again = [await opened(person, url, stack) for url in everywhere]
    assert (statuses[:3], statuses[-3:]) == ([101] * 3, [503] * 3)
    assert set(statuses) == {101, 503}
    assert answers == [200] * 3  # files are kept for everything else
    assert again == [101] * 3


async def test_row_31_a_replica_that_is_short_of_files_is_passed_over(cluster: Cluster):
    async with open_meanwhile(cluster) as (person, _), contextlib.AsyncExitStack() as stack:
        with files_limited(serving(cluster)[:1], KEPT):
            statuses = [await opened(person, cluster.url, stack) for _ in range(10)]
    assert statuses == [101] * 10


async def test_row_31_with_no_file_left_old_sockets_live_and_new_ones_come_in_afterwards(
    cluster: Cluster,
):
    """Too late for a status: the connection cannot be taken, and waits. The limit above is why."""
    async with (
        open_meanwhile(cluster) as (person, everywhere),
        contextlib.AsyncExitStack() as stack,
    ):
        with files_limited(serving(cluster), -15):
            tries = [opened(person, url, stack, seconds=2) for url in everywhere]
            statuses = await asyncio.gather(*tries)
        again = [await opened(person, url, stack) for url in everywhere]
    assert statuses == [0] * 3
    assert again == [101] * 3


async def test_row_35_readers_whose_lines_break_together_are_all_back_in_a_few_seconds(
    cluster: Cluster,
):
    scale.allow_many_files()
    first = await begin(cluster, f"count 250 pace={30 if ALL else 60}")
    readers = [Reader(first.person, first.generation) for _ in range(20)]
    reading = asyncio.gather(*(reader.finish() for reader in readers))

    def break_theirs_too() -> None:
        assert {reader.status for reader in readers} == {""}, "the answer ended before the storm"
        for reader in readers:
            reader.break_line()

    try:
        found = await scale.storm(cluster, 2000 if ALL else 300, break_theirs_too)
        await reading
    finally:
        scale.leave_all()
    assert found["all back, s"] <= scale.BACK_SECONDS
    assert len({reader.text for reader in readers}) == 1
    assert {(reader.text.split()[-1], reader.status) for reader in readers} == {("250", "done")}


def taken(cluster: Cluster) -> int:
    """Connections that the realtime processes hold, whatever their other side thinks."""
    ports = {f":{urlsplit(url).port:04X}" for url in cluster.replicas}
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return sum(row[1][-5:] in ports and row[3] in (ESTABLISHED, CLOSE_WAIT) for row in rows)


def watched(person: Person, url: str) -> connect:
    """An idle socket that says nothing by itself, and answers pings."""
    return connect(
        url.replace("http", "ws") + "/ws/", additional_headers={"Cookie": person.cookies},
        origin=url, ping_interval=None, close_timeout=0.1,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.skipif(not ALL, reason="takes most of a minute: make faults")
async def test_row_32_the_server_frees_half_open_sockets_and_no_others(cluster: Cluster):
    person = await Person(cluster).arrive()
    ports = [urlsplit(url).port or 0 for url in (cluster.url, cluster.replicas[0])]
    lines = Proxy(ports[0]), Proxy(ports[1])
    async with lines[0] as front, lines[1] as direct, watched(person, cluster.url) as one:
        others = taken(cluster)
        async with contextlib.AsyncExitStack() as stack:
            for url in (front.url, direct.url) * 3:
                await stack.enter_async_context(watched(person, url))
            await asyncio.sleep(25)  # a ping has been answered through the line
            assert taken(cluster) >= others + 6
            front.is_hole = direct.is_hole = True
            holed_at = time.monotonic()
            while taken(cluster) > others:
                assert time.monotonic() - holed_at < 45, "half-open sockets stay"
                await asyncio.sleep(0.2)
            print(f"freed after {time.monotonic() - holed_at:.0f} s")
        async with asyncio.timeout(5):
            await (await one.ping())
