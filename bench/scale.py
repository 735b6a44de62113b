"""How much one process of a role bears.

python -m bench.scale streams|arriving|sockets|visits|storm|answers
The simulated model answers, everything else is real; the people are on the same machine.
"""

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.cluster import MARKS, Cluster, running_cluster
from bench.faults import stopped
from bench.footprint import megabytes
from bench.reader import Reader, pause_after
from bench.record import record
from bench.site import Person, descendants, watch

STREAMS, PACE = int(os.environ.get("STREAMS") or 250), 100
QUESTION, TOKENS = f"count 152 pace={PACE}", 499  # a token a character
FINISH_SECONDS, ARRIVING_SECONDS = 5.25, 4.5
SOCKETS, SOCKET_KIB, ACCEPTS_A_SECOND, STALL_MS = (
    int(os.environ.get("SOCKETS") or 5_000),
    40.0,
    800,
    50.0,
)
AT_ONCE = 50


def quantile(values: list[float], share: float) -> float:
    return quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


# --- many answers at once, all read through one realtime process ---------------------------
async def streams(cluster: Cluster) -> dict[str, Any]:
    """All wait in the queue and are watched before the workers, frozen so far, begin."""
    people = [await Person(cluster).arrive() for _ in range(STREAMS // 5)]
    await asyncio.sleep(3)  # the titles of the arrivals
    with stopped(cluster.pids_of("worker")):
        gate = asyncio.Semaphore(AT_ONCE)
        asked = [_ask(person, gate) for person in people for _ in range(5)]
        readers = await asyncio.gather(*asked)
        reads = [asyncio.create_task(_read(one, cluster.replicas[0])) for one in readers]
        await asyncio.sleep(5)  # every socket is open
    pid = _process_that_serves(cluster)
    busy, started = _cpu_seconds(pid), time.perf_counter()
    seen = await asyncio.gather(*reads)
    took = time.perf_counter() - started
    return _finished(seen) | {
        "from the workers' wake-up to the last end, s": round(took, 2),
        "of a core, the realtime process": round((_cpu_seconds(pid) - busy) / took, 2),
        "longest pause of a stream, median s": round(median(r.longest_pause for r in readers), 2),
    }


async def arriving(cluster: Cluster) -> dict[str, Any]:
    """The same by people who come one after the other, in less time than an answer takes."""
    people = [await Person(cluster).arrive() for _ in range(STREAMS // 5)]
    await asyncio.sleep(3)
    replica, pause = cluster.replicas[0], ARRIVING_SECONDS / STREAMS
    asked = [_come(people[n % len(people)], n * pause, replica) for n in range(STREAMS)]
    return {"come over s": ARRIVING_SECONDS} | _finished(await asyncio.gather(*asked))


async def _come(person: Person, after: float, replica: str) -> "Seen":
    await asyncio.sleep(after)
    return await _read(Reader(person, await person.ask(QUESTION)), replica)


class Seen(NamedTuple):
    """When a reader saw what of one answer: its first token, its last with the word that the
    answer is whole, and its end, which has the finished row of the page."""

    first: float
    whole: float
    end: float


def _finished(seen: Sequence[Seen]) -> dict[str, Any]:
    wholes, ends = [one.whole - one.first for one in seen], [one.end - one.first for one in seen]
    return {
        "streams": len(seen),
        "at most at once": max(sum(a.first <= b.first <= a.whole for a in seen) for b in seen),
        "tokens each": TOKENS,
        "first token to last, at this pace s": (TOKENS - 1) / PACE,
        "first token to whole, median s": round(median(wholes), 2),
        "first token to whole, p95 s": round(quantile(wholes, 0.95), 2),
        "first token to whole, limit of the p95 s": FINISH_SECONDS,
        "first token to its end, median s": round(median(ends), 2),
        "first token to its end, p95 s": round(quantile(ends, 0.95), 2),
    }


async def _ask(person: Person, gate: asyncio.Semaphore) -> Reader:
    async with gate:
        return Reader(person, await person.ask(QUESTION))


async def _read(reader: Reader, replica: str) -> Seen:
    async with reader.person.socket(replica) as socket:
        began = whole = 0.0
        async for frame in watch(socket, reader.generation):
            reader.take(frame)
            now = time.perf_counter()
            began = began or (now if frame["type"] == "delta" else 0)
            whole = whole or (now if "finish" in frame else 0)
        assert (reader.status, len(reader.text), bool(whole)) == ("done", TOKENS, True)
        return Seen(began, whole, now)


# --- many pages that are open and do nothing, then beside some that are answered --------------
WATCHED, LOAD = 40, "count 500 pace=30"  # 1,890 tokens each


async def sockets(cluster: Cluster) -> dict[str, Any]:
    person = await Person(cluster).arrive()
    pid = _process_that_serves(cluster)
    gate = asyncio.Semaphore(AT_ONCE)
    await asyncio.sleep(5)
    before = megabytes(pid)
    started = time.perf_counter()
    await asyncio.gather(*(_open(person, cluster.replicas[0], gate) for _ in range(SOCKETS)))
    opening = time.perf_counter() - started
    await asyncio.sleep(10)
    each = (megabytes(pid) - before) * 1024 / SOCKETS
    idle = await _pings(cluster, person, pid)
    people = [await Person(cluster).arrive() for _ in range(WATCHED // 5)]
    readers = [Reader(one, await one.ask(LOAD)) for one in people for _ in range(5)]
    reads = [asyncio.create_task(reader.finish(cluster.replicas[0])) for reader in readers]
    await asyncio.sleep(5)
    lengths = sum(len(reader.text) for reader in readers)
    loaded = await _pings(cluster, person, pid)
    lengths = sum(len(reader.text) for reader in readers) - lengths
    await asyncio.gather(*reads)
    leave_all()
    return {
        "sockets": SOCKETS,
        "memory of a socket, KiB": round(each, 1),
        "memory of a socket, limit KiB": SOCKET_KIB,
        "opened a second": round(SOCKETS / opening),
        "opened a second, limit": ACCEPTS_A_SECOND,
        "a ping, limit of the p99.9 ms": STALL_MS,
        "the event loop": {
            "while they are idle": idle,
            f"beside {WATCHED} answers": loaded
            | {"tokens a second": round(lengths / PING_SECONDS)},
        },
    }


OPEN: list[asyncio.StreamWriter] = []
ANSWERING: list[asyncio.Task[None]] = []


async def _open(person: Person, replica: str, gate: asyncio.Semaphore) -> None:
    """By hand: a library's own time would count as the server's."""
    host, port = replica.removeprefix("http://").split(":")
    async with gate:
        reader, writer = await asyncio.open_connection(host, int(port))
        head = [
            "GET /ws/ HTTP/1.1", f"Host: {host}:{port}", f"Origin: {replica}",
            "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Cookie: {person.cookies}",
        ]  # fmt: skip
        writer.write("\r\n".join([*head, "", ""]).encode())
        status = await reader.readuntil(b"\r\n\r\n")
        assert status.startswith(b"HTTP/1.1 101"), status
        assert b"hello" in await reader.read(200)
    OPEN.append(writer)
    ANSWERING.append(asyncio.create_task(_answer_pings(reader, writer)))


async def _answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a browser does by itself; who does not is dropped."""
    while data := await reader.read(4096):
        if b"\x89\x00" in data:
            writer.write(b"\x8a\x80\0\0\0\0")


PING_SECONDS = 30


async def _pings(cluster: Cluster, person: Person, pid: int) -> dict[str, float]:
    """What the event loop needs for the smallest of its jobs, and does meanwhile."""
    busy = _cpu_seconds(pid)
    address = [cluster.replicas[0], person.cookies, str(PING_SECONDS)]
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.pings", *address, stdout=asyncio.subprocess.PIPE
    )
    found = json.loads((await probe.communicate())[0])
    return {
        "a ping, median ms": round(median(found), 2),
        "a ping, p99.9 ms": round(quantile(found, 0.999), 1),
        "pings": len(found),
        "of a core, the realtime process": round((_cpu_seconds(pid) - busy) / PING_SECONDS, 2),
    }


# --- pages that are opened and left, again and again ---------------------------------------
VISITS, WARM, DRIFT = int(os.environ.get("VISITS") or 200_000), 20_000, 0.05


async def visits(cluster: Cluster) -> dict[str, Any]:
    """Memory after the first of them, when all that is made once is made, and after the last."""
    person = await Person(cluster).arrive()
    pid = _process_that_serves(cluster)
    before = 0.0
    started = time.perf_counter()
    for number in tqdm(range(0, VISITS, AT_ONCE), unit="visits", unit_scale=AT_ONCE):
        gate = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(_open(person, cluster.replicas[0], gate) for _ in range(AT_ONCE)))
        leave_all()
        if number <= min(WARM, VISITS // 2):
            before = megabytes(pid)
    took = time.perf_counter() - started
    await asyncio.sleep(15)
    return {
        "sockets opened and left": VISITS,
        "a second": round(VISITS / took),
        f"memory after {WARM} of them, MB": round(before, 1),
        "memory after all, MB": round(megabytes(pid), 1),
        "more, of what it was": round(megabytes(pid) / before - 1, 3),
        "limit": DRIFT,
    }


def leave_all() -> None:
    for writer in OPEN:
        writer.transport.abort()
    OPEN.clear()
    ANSWERING.clear()


# --- everybody comes back at once ------------------------------------------------------------
RETURNING, BACK_SECONDS = 2_000, 15.0


async def storm(
    cluster: Cluster, returning: int = RETURNING, also: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Their lines break together; as pages do, each comes back after a moment of its own."""
    person = await Person(cluster).arrive()
    gate = asyncio.Semaphore(AT_ONCE)
    await asyncio.gather(*(_open(person, cluster.url, gate) for _ in range(returning)))
    leave_all()
    also()
    all_at_once = asyncio.Semaphore(returning)
    started = time.perf_counter()

    async def come_back() -> float:
        await asyncio.sleep(pause_after(0))
        await _open(person, cluster.url, all_at_once)
        return time.perf_counter() - started

    took = await asyncio.gather(*(come_back() for _ in range(returning)))
    leave_all()
    return {
        "sockets, through nginx to two processes": returning,
        "back, median s": round(median(took), 1),
        "all back, s": round(max(took), 1),
        "all back, limit s": BACK_SECONDS,
    }


# --- what one answer costs each role ---------------------------------------------------------
ANSWERS, ANSWER = 300, "count 64 pace=60"  # 180 tokens in three seconds, read to the end


async def answers(cluster: Cluster) -> dict[str, Any]:
    people = [await Person(cluster).arrive() for _ in range(20)]
    await asyncio.sleep(3)  # the titles of the arrivals
    before = _spent(cluster)

    async def ask(person: Person) -> None:
        for _ in range(ANSWERS // len(people)):
            reader = Reader(person, await person.ask(ANSWER))
            await reader.finish()
            await person.http.get("/")

    await asyncio.gather(*(ask(person) for person in people))
    await asyncio.sleep(3)
    spent = _spent(cluster)
    rows = {
        role: {"ms of a core": round((spent[role] - before[role]) * 1000 / ANSWERS, 1)}
        for role in spent
    }
    return {"an answer with its title and a page, by role": rows}


def _spent(cluster: Cluster) -> dict[str, float]:
    """Seconds of processors so far."""
    postgres = int((cluster.folder / "postgres" / "postmaster.pid").read_text().split()[0])
    first = {role: cluster.pids_of(role) for role in MARKS} | {"postgres": [postgres]}
    return {
        role: sum(_cpu_seconds(below) for pid in pids for below in (pid, *descendants(pid)))
        for role, pids in first.items()
    }


def _process_that_serves(cluster: Cluster) -> int:
    """gunicorn's worker, below the first of the realtime replicas."""
    return descendants(min(cluster.pids_of("realtime")))[-1]


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


Measure = Callable[[Cluster], Coroutine[Any, Any, dict[str, Any]]]
PARTS: dict[str, tuple[Measure, dict[str, str]]] = {
    "streams": (streams, {"WORKER_SLOTS": "128", "MAX_QUEUED": "0"}),
    "arriving": (arriving, {"WORKER_SLOTS": "128", "MAX_QUEUED": "0"}),
    "sockets": (sockets, {"WORKER_SLOTS": "32", "MAX_QUEUED": "0"}),
    "visits": (visits, {}),
    "storm": (storm, {}),
    "answers": (answers, {"MAX_QUEUED": "0"}),
}


def allow_many_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    allow_many_files()
    for part in sys.argv[1:] or list(PARTS):
        measure, environment = PARTS[part]
        with running_cluster(**environment) as cluster:
            figures = asyncio.run(measure(cluster))
        record(f"scale-{part}", figures, "make cluster, people on the same machine")


if __name__ == "__main__":
    main()
