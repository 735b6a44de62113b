"""What befalls a worker while it writes: it is told to end, killed, wedged, or in another time."""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg.rows import class_row
from websockets.exceptions import InvalidStatus

from bench import scale
from bench.beside import FAKETIME, another_realtime, another_worker
from bench.cluster import Cluster
from bench.faults import redis_of, stopped
from bench.reader import Reader
from bench.site import Person, found_generation
from inference.engines.base import DECODE_SECONDS
from inference.runner import EXIT_WEDGED
from tests.chatsite.test_serve import is_running
from tests.cluster.conftest import begin, needs_nginx
from tests.cluster.test_workers import SLEEP
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


async def go_on(reader: Reader, url: str = "") -> "asyncio.Task[None]":
    """Read again; every pause from now on is the answer's, and none the reader's own."""
    seen, reading = len(reader.text), asyncio.create_task(reader.finish(url))
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


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT] if ALL else [signal.SIGTERM]
)
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


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
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
@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
async def test_row_8_a_wedged_decoder_is_taken_over_after_the_stall_limit(cluster: Cluster):
    with another_worker(cluster, FAILPOINT="decode@100:sleep=300") as process:
        reader = await begin_on_another(cluster, LONG)
        reading = await go_on(reader)
        await asyncio.sleep(11)  # longer than a lease: it was renewed, for it is not dead
        assert process.poll() is None
        assert row_of(cluster, reader).attempts == 1
        assert await asyncio.to_thread(process.wait, 60) == EXIT_WEDGED
        await reading
    judge(cluster, reader, LONG_COUNTED, attempts=2)
    assert DECODE_SECONDS < reader.longest_pause < DECODE_SECONDS + 15


# --- in another time ----------------------------------------------------------------------
# Of each process in another time: what it takes for the time is written down.
WITNESS = f"""{SLEEP}
import os
import threading


def tell():
    name = f"{{os.path.dirname(__file__)}}/told.{{os.getpid()}}"
    while True:
        with open(f"{{name}}.new", "w") as file:
            file.write(str(time.time()))
        os.replace(f"{{name}}.new", name)
        time.sleep(0.2)


def begin():
    threading.Thread(target=tell, daemon=True).start()


os.register_at_fork(after_in_child=begin)
begin()
"""


def times_told(folder: Path) -> list[int]:
    """How many minutes each process is off."""
    told = [float(file.read_text()) for file in folder.glob("told.*") if file.suffix != ".new"]
    return [round((moment - time.time()) / 60) for moment in told]


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
@pytest.mark.skipif(not FAKETIME, reason="needs faketime (Debian: apt-get install faketime)")
async def test_row_29_a_clock_that_jumps_back_an_hour_changes_no_lease(
    cluster: Cluster, tmp_path: Path
):
    now = tmp_path / "now"
    now.write_text("+0\n")
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    clock = {
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(now), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with another_worker(cluster, **clock), another_realtime(cluster, **clock) as url:
        own = await begin_on_another(cluster, LONG)
        readers = [own, *[await begin(cluster, LONG, until=1) for _ in range(4)]]
        reading = [await go_on(reader, url) for reader in readers]
        assert len(told := times_told(tmp_path)) >= 3  # the worker, gunicorn's first and second
        assert set(told) == {0}
        now.write_text("-1h\n")
        await asyncio.sleep(1)
        assert set(times_told(tmp_path)) == {-60}
        with stopped(cluster.pids_of("worker")):  # in the past too a run is taken and written
            late = Reader(own.person, await own.person.ask("count 30 pace=80"))
            await late.finish(url)
        await asyncio.gather(*reading)
    for reader in readers:
        judge(cluster, reader, LONG_COUNTED, attempts=1)
        assert reader.longest_pause < 5
    judge(cluster, late, " ".join(map(str, range(1, 31))), attempts=1)


# --- without what Redis had ---------------------------------------------------------------
async def test_row_20_redis_emptied_again_and_again_is_not_noticed(cluster: Cluster):
    """Sends, answers and sessions. In Redis are copies of sessions, counts of limits, answers
    under way and wake-ups. "Single-flight holds" has nothing to hold yet: no answer is cached.
    """
    people = [await Person(cluster).arrive() for _ in range(4)]
    user = {person: person_on_page(await person.http.get("/")) for person in people}
    statuses: Counter[int] = Counter()
    readers: list[Reader] = []
    emptied = 0

    async def keep_asking(person: Person) -> None:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            fields = {"text": "count 40 pace=80", "client_id": str(uuid4())}
            answer = await person.try_post("/chats/", **fields)
            statuses[answer.status_code] += 1
            readers.append(Reader(person, found_generation(answer.json())))
            await readers[-1].finish()

    asking = asyncio.gather(*map(keep_asking, people))
    while not asking.done():
        await asyncio.to_thread(redis_of(cluster).flushall)
        emptied += 1
        await asyncio.sleep(0.3)
    await asking
    assert set(statuses) == {200}
    assert len(readers) > 12
    assert emptied > 20
    for reader in readers:
        judge(cluster, reader, " ".join(map(str, range(1, 41))), attempts=1)
    for person in people:
        assert person_on_page(await person.http.get("/")) == user[person]


def person_on_page(page: httpx.Response) -> str:
    found = re.search(r'<body[^>]* data-user="([^"]+)"', page.text)
    assert found, page.text[:500]
    return found[1]


# --- sockets of a process that is told to end ---------------------------------------------
async def test_a_realtime_process_that_ends_says_goodbye_by_and_by_and_sends_newcomers_on(
    cluster: Cluster,
):
    person = await Person(cluster).arrive()
    here, gate = cluster.replicas[0], asyncio.Semaphore(20)
    await asyncio.gather(*(scale._open(person, here, gate) for _ in range(600)))  # three seconds'
    cluster.kill(min(cluster.pids_of("realtime")), signal.SIGTERM)
    await asyncio.sleep(0.5)
    with pytest.raises(InvalidStatus) as refused:
        async with person.socket(here):
            pass
    assert refused.value.response.status_code == 503
    for _ in range(6):
        async with person.socket():  # through nginx, which asks the other one
            pass
    assert sum(not task.done() for task in scale.ANSWERING) > 200  # they are not told yet
    async with asyncio.timeout(15):
        await asyncio.gather(*scale.ANSWERING)
    scale.leave_all()
    cluster.wait_until_up("realtime", 2)
