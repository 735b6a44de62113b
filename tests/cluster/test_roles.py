"""What befalls a worker while it writes: it is told to end, killed, wedged, or in another time."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import class_row

from bench.cluster import Cluster
from bench.faults import stopped
from bench.reader import Reader
from bench.site import Person
from inference.runner import EXIT_WEDGED, STALL_SECONDS
from tests.chatsite.test_serve import is_running
from tests.cluster.conftest import begin, needs_nginx
from tests.cluster.test_workers import another_worker
from tests.faults.workers import ALL

pytestmark = needs_nginx
LONG, LONG_COUNTED = "count 250 pace=60", " ".join(map(str, range(1, 251)))  # fifteen seconds


@dataclass
class Row:
    """A run as the database has it."""

    status: str
    attempts: int
    text: str
    boot_id: UUID | None


def row_of(cluster: Cluster, reader: Reader) -> Row:
    query = "SELECT status, attempts, text, boot_id FROM inference_generation WHERE id = %s"
    with psycopg.connect(cluster.database_url, row_factory=class_row(Row)) as own:
        found = own.execute(query, [reader.generation]).fetchone()
    assert found
    return found


def writer_of(cluster: Cluster, reader: Reader) -> int:
    """The process that has claimed it."""
    query = "SELECT pid FROM inference_worker WHERE boot_id = %s"
    with psycopg.connect(cluster.database_url) as own:
        [pid] = own.execute(query, [row_of(cluster, reader).boot_id]).fetchone() or [0]
    assert is_running(pid)
    return int(pid)


async def until_gone(pid: int, seconds: float) -> float:
    """How long it took."""
    started = time.monotonic()
    while is_running(pid):
        assert time.monotonic() - started < seconds, f"{pid} still runs"
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def go_on(reader: Reader) -> "asyncio.Task[None]":
    """Read again; every pause from now on is the answer's, and none the reader's own."""
    seen, reading = len(reader.text), asyncio.create_task(reader.finish())
    while len(reader.text) <= seen and not reading.done():
        await asyncio.sleep(0.01)
    return reading


def judge(cluster: Cluster, reader: Reader, text: str, attempts: int) -> None:
    """Text on the screen = text in the database = what was asked for, ended once, never reset."""
    row = row_of(cluster, reader)
    assert (reader.text, reader.status, reader.resets) == (text, "done", 0)
    assert (row.text, row.status, row.attempts) == (text, "done", attempts)


async def begin_on_another(cluster: Cluster, text: str, until: int = 40) -> Reader:
    """While the cluster's own workers stand still, the other one is the only one to take it."""
    person = await Person(cluster).arrive()
    with stopped(cluster.pids_of("worker")):
        reader = Reader(person, await person.ask(text))
        async with asyncio.timeout(40):  # it may have to start first
            await reader.read(until)
    return reader


# --- told to end --------------------------------------------------------------------------
async def test_row_12_a_worker_told_to_end_hands_its_answer_over_uncounted(cluster: Cluster):
    reader = await begin(cluster, LONG)
    first, pid = row_of(cluster, reader).boot_id, writer_of(cluster, reader)
    reading = await go_on(reader)
    cluster.kill(pid, signal.SIGTERM)
    assert await until_gone(pid, 25) < 25
    taken_from = row_of(cluster, reader)
    assert (taken_from.status, taken_from.attempts) in {("running", 0), ("running", 1)}
    await reading
    judge(cluster, reader, LONG_COUNTED, attempts=1)
    assert row_of(cluster, reader).boot_id != first
    assert reader.longest_pause < 5
    cluster.wait_until_up("worker", 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
async def test_row_13_a_second_word_to_a_draining_worker_is_as_harmless_as_a_kill(
    cluster: Cluster, number: int
):
    reader = await begin(cluster, LONG)
    first, pid = row_of(cluster, reader).boot_id, writer_of(cluster, reader)
    reading = await go_on(reader)
    cluster.kill(pid, signal.SIGTERM)
    await asyncio.sleep(1)
    assert is_running(pid)  # of its three seconds; and still at it
    assert row_of(cluster, reader).boot_id == first
    cluster.kill(pid, number)
    assert await until_gone(pid, 2) < 2
    await reading
    judge(cluster, reader, LONG_COUNTED, attempts=2)
    assert reader.longest_pause < 5
    cluster.wait_until_up("worker", 2)


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
async def test_row_12_a_worker_with_twenty_seconds_to_drain_ends_within_25(cluster: Cluster):
    with another_worker(cluster, DRAIN_SECONDS="20") as process:
        reader = await begin_on_another(cluster, "count 250 pace=20")
        process.terminate()
        started = time.monotonic()
        assert await asyncio.to_thread(process.wait, 25) == 0
        assert 19 < time.monotonic() - started < 25
    await reader.read(len(reader.text) + 100)
    assert row_of(cluster, reader).attempts == 1
    await reader.person.stop(reader.generation)


# --- killed -------------------------------------------------------------------------------
async def test_row_2_a_worker_killed_with_all_below_it_is_buried_by_its_supervisor(
    cluster: Cluster,
):
    reader = await begin(cluster, LONG)
    reading = await go_on(reader)
    cluster.kill(writer_of(cluster, reader))
    await reading
    judge(cluster, reader, LONG_COUNTED, attempts=2)
    assert reader.longest_pause < 5
    cluster.wait_until_up("worker", 2)


async def test_row_2_a_lost_host_is_noticed_when_its_lease_runs_out(cluster: Cluster):
    with another_worker(cluster) as process:
        reader = await begin_on_another(cluster, LONG)
        assert writer_of(cluster, reader) == process.pid
        reading = await go_on(reader)
        os.killpg(process.pid, signal.SIGKILL)  # nobody watches it
        await reading
    judge(cluster, reader, LONG_COUNTED, attempts=2)
    assert 5 < reader.longest_pause < 15  # it was the lease, and nobody's word


@pytest.mark.skipif(not ALL, reason="the same in another way: make faults")
async def test_row_2_a_worker_dies_while_its_supervisor_is_frozen(cluster: Cluster):
    reader = await begin(cluster, LONG)
    reading = await go_on(reader)
    assert cluster.process
    with stopped([cluster.process.pid]):
        cluster.kill(writer_of(cluster, reader))
        await reading
    judge(cluster, reader, LONG_COUNTED, attempts=2)
    assert 5 < reader.longest_pause < 15
    cluster.wait_until_up("worker", 2)


# --- wedged -------------------------------------------------------------------------------
@pytest.mark.skipif(not ALL, reason="the limit is a minute: make faults")
async def test_row_8_a_wedged_decoder_is_taken_over_after_the_stall_limit(cluster: Cluster):
    with another_worker(cluster, FAILPOINT="decode@100:sleep=300") as process:
        reader = await begin_on_another(cluster, LONG)
        reading = await go_on(reader)
        await asyncio.sleep(30)  # three leases: each was renewed, for it is not dead
        assert process.poll() is None
        assert row_of(cluster, reader).attempts == 1
        assert await asyncio.to_thread(process.wait, 60) == EXIT_WEDGED
        await reading
    judge(cluster, reader, LONG_COUNTED, attempts=2)
    assert STALL_SECONDS < reader.longest_pause < STALL_SECONDS + 15
