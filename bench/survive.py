"""What readers notice when parts of a cluster die: python -m bench.survive [PART …]

kills    workers are killed at random moments (KILLS=1000)
zombies  workers are stopped until others have taken over, and wake up (ZOMBIES=1000)
redis    Redis does not answer for a minute
refresh  pages are loaded anew in the middle of an answer
stop     answers are stopped that are read on one replica and asked to stop on another
deaths   the cluster's own workers are killed, and its supervisor finds out (MINUTES=5)
hosts    workers are frozen with all below them, as if their hosts were lost (MINUTES=5)
rolling  workers and web processes are told to end, one at a time, again and again (MINUTES=5)
postgres PostgreSQL is restarted as after a crash, again and again (MINUTES=5)

The simulated model answers; every other part is real. Each answer's text must be the one that
an undisturbed run has; anything else ends the measurement.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
from tqdm import tqdm

from bench import nemesis
from bench.cluster import Cluster, running_cluster
from bench.faults import stopped
from bench.forks import Forks
from bench.reader import Reader
from bench.record import record
from bench.scale import quantile
from bench.site import Person, found_generation

KILLS = int(os.environ.get("KILLS") or 1000)
ZOMBIES = int(os.environ.get("ZOMBIES") or 1000)
SEED = int(os.environ.get("SEED") or 20261122)
PEOPLE, ASLEEP_SECONDS = 12, 0.35


class Witness(Reader):
    """Notes how long after each harm the next piece of text comes."""

    def __init__(self, person: Person, generation: str, expected: str) -> None:
        super().__init__(person, generation)
        self.expected = expected
        self.harmed_at: list[float] = []
        self.waits: list[float] = []

    def _moved(self) -> None:
        super()._moved()
        now = time.monotonic()
        self.waits += [now - at for at in self.harmed_at]
        self.harmed_at.clear()


class Crowd:
    """People who ask one question after the other, and read every answer to its end."""

    def __init__(self, cluster: Cluster, draw: random.Random) -> None:
        self._cluster, self._draw = cluster, draw
        self.reading: dict[str, Witness] = {}
        self.ended: list[Witness] = []

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator["Crowd"]:
        """At the end everybody reads what they have begun."""
        people = [await Person(self._cluster).arrive() for _ in range(PEOPLE)]
        self._over = False
        tasks = [asyncio.create_task(self._ask(person)) for person in people]
        yield self
        self._over = True
        await asyncio.gather(*tasks)

    async def _ask(self, person: Person) -> None:
        while not self._over:
            count = self._draw.randint(60, 300)
            expected = " ".join(map(str, range(1, count + 1)))
            witness = Witness(person, await person.ask(f"count {count} pace=150"), expected)
            self.reading[witness.generation] = witness
            await witness.finish()
            del self.reading[witness.generation]
            here = f"{witness.generation}: {witness.status} after {len(witness.text)} characters"
            assert (witness.text, witness.status) == (expected, "done"), here
            self.ended.append(witness)

    @property
    def waits(self) -> list[float]:
        return [wait for witness in self.ended for wait in witness.waits]


class Crew:
    """A few workers, each a fork; the cluster's own two are frozen and have nothing."""

    def __init__(self, cluster: Cluster, size: int, lanes: str = "") -> None:
        environment = {**cluster.told, **cluster.environment, "CHATSITE_ROLE": "worker"}
        self._forks = Forks(environment)
        self._database = psycopg.connect(cluster.database_url, autocommit=True)
        self.workers = [self._forks.start(lanes=lanes) for _ in range(size)]

    def runs_of(self, boot_id: UUID) -> list[str]:
        sql = "SELECT id FROM inference_generation WHERE boot_id = %s AND status = 'running'"
        return [str(pk) for (pk,) in self._database.execute(sql, [boot_id])]

    def void(self, boot_id: UUID) -> None:
        """As if its leases had run out, which takes ten seconds."""
        self._forks.bury(boot_id)

    def replace(self, worker: tuple[int, UUID]) -> None:
        self.workers[self.workers.index(worker)] = self._forks.start()

    def zombie_writes(self) -> int:
        """Events by a worker that come after one by a later worker."""
        sql = """
            SELECT COUNT(*) FROM (
                SELECT fence, MAX(fence) OVER (
                    PARTITION BY generation_id, epoch ORDER BY seq) AS highest
                FROM inference_chunk) AS events
            WHERE fence < highest
        """
        [(count,)] = self._database.execute(sql)
        return int(count)

    def close(self) -> None:
        for pid, _ in self.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._forks.close()
        self._database.close()


@contextlib.contextmanager
def crew_of(cluster: Cluster, size: int = 3) -> Any:
    with stopped(cluster.pids_of("worker")):
        crew = Crew(cluster, size)
        try:
            yield crew
        finally:
            crew.close()


# --- workers that die, and workers that come back ---------------------------------------------
async def kills(cluster: Cluster) -> dict[str, Any]:
    draw = random.Random(SEED)
    with crew_of(cluster) as crew:
        async with Crowd(cluster, draw).asking() as crowd:
            for _ in tqdm(range(KILLS), unit="kill"):
                await asyncio.sleep(draw.uniform(0.05, 0.5))
                worker = await _victim(crowd, crew, draw)
                _note_harm(crowd, crew.runs_of(worker[1]))
                os.kill(worker[0], signal.SIGKILL)
                crew.void(worker[1])
                crew.replace(worker)
        wrong = crew.zombie_writes()
    return {"kill -9 of a worker": KILLS, "seed": SEED, **_seen(crowd, 5.0, wrong)}


async def zombies(cluster: Cluster) -> dict[str, Any]:
    """Leases are voided and not waited for, so that the stopped one is sure of its own."""
    draw = random.Random(SEED)
    with crew_of(cluster) as crew:
        async with Crowd(cluster, draw).asking() as crowd:
            for _ in tqdm(range(ZOMBIES), unit="stop"):
                await asyncio.sleep(draw.uniform(0.02, 0.2))
                pid, boot_id = draw.choice(crew.workers)
                _note_harm(crowd, crew.runs_of(boot_id))
                os.kill(pid, signal.SIGSTOP)
                crew.void(boot_id)
                await asyncio.sleep(ASLEEP_SECONDS)
                os.kill(pid, signal.SIGCONT)
        wrong = crew.zombie_writes()
    return {"SIGSTOP, takeover, SIGCONT": ZOMBIES, "seed": SEED, **_seen(crowd, 5.0, wrong)}


async def _victim(crowd: Crowd, crew: Crew, draw: random.Random) -> tuple[int, UUID]:
    """A worker in the middle of an answer that has gone on since it was harmed the last time.

    Three kills in a row without a token between them are a run's end, and meant to be.
    """
    while True:
        draw.shuffle(crew.workers)
        for worker in crew.workers:
            runs = [crowd.reading.get(run) for run in crew.runs_of(worker[1])]
            if any(run and run.text and not run.harmed_at for run in runs):
                return worker
        await asyncio.sleep(0.05)


def _note_harm(crowd: Crowd, runs: list[str]) -> None:
    for run in runs:
        if run in crowd.reading:
            crowd.reading[run].harmed_at.append(time.monotonic())


def _seen(crowd: Crowd, limit: float, zombie_writes: int) -> dict[str, Any]:
    waits = crowd.waits
    return {
        "answers read, all of them as without harm": len(crowd.ended),
        "answers that were harmed": sum(bool(witness.waits) for witness in crowd.ended),
        "text taken back (epochs begun anew)": sum(witness.resets for witness in crowd.ended),
        "events by a worker after a later one's": zombie_writes,
        "next piece after the harm, median s": round(quantile(waits, 0.5), 2),
        "next piece after the harm, p95 s": round(quantile(waits, 0.95), 2),
        "next piece after the harm, limit of the p95 s": limit,
        "next piece after the harm, worst s": round(max(waits), 2),
    }


# --- a minute without Redis -------------------------------------------------------------------
AWAY_SECONDS = 60
TOGETHER_SECONDS = 0.1


async def redis(cluster: Cluster) -> dict[str, Any]:
    people = [await Person(cluster).arrive() for _ in range(PEOPLE)]
    readers = [Pieces(person, await person.ask("count 800 pace=40")) for person in people]
    reading = [asyncio.create_task(reader.finish(seconds=300)) for reader in readers]
    await asyncio.sleep(5)
    with stopped(cluster.pids_of("valkey")):
        for reader in readers:
            reader.times.clear()
        sent = [await person.ask("count 3") for person in people]
        await asyncio.sleep(AWAY_SECONDS)
        rates = [reader.moves() / AWAY_SECONDS for reader in readers]
        pauses = [reader.longest_gap() for reader in readers]
    asked = [Reader(p, run) for p, run in zip(people, sent, strict=True)]
    await asyncio.gather(*reading, *(reader.finish() for reader in asked))
    expected = " ".join(map(str, range(1, 801)))
    failed = sum((r.text, r.status) != (expected, "done") for r in readers)
    return {
        "seconds without Redis": AWAY_SECONDS,
        "answers under way": len(readers),
        "answers that failed or differ": failed + sum(r.text != "1 2 3" for r in asked),
        "times a second that new text came, the slowest answer": round(min(rates), 2),
        "times a second that new text came, limit": 2.0,
        "longest pause s": round(max(pauses), 2),
    }


class Pieces(Reader):
    """Notes when each piece came."""

    def __init__(self, person: Person, generation: str) -> None:
        super().__init__(person, generation)
        self.times: list[float] = []

    def _moved(self) -> None:
        super()._moved()
        self.times.append(time.monotonic())

    def moves(self) -> int:
        """Pieces that come together count once."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return 1 + sum(later - earlier > TOGETHER_SECONDS for earlier, later in pairs)

    def longest_gap(self) -> float:
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((later - earlier for earlier, later in pairs), default=float("inf"))


# --- readers who come anew, or want no more ---------------------------------------------------
TIMES = int(os.environ.get("TIMES") or 100)


async def refresh(cluster: Cluster) -> dict[str, Any]:
    """From the request for the page to the moment when its socket has told all of the text."""
    person = await Person(cluster).arrive()
    took = []
    for _ in tqdm(range(TIMES), unit="refresh"):
        fields = {"text": "count 300 pace=300", "client_id": str(uuid4())}
        sent = await person.post("/chats/", **fields)
        reader = Reader(person, found_generation(sent))
        await reader.read(until=500)
        started = time.perf_counter()
        page = await person.http.get(f"/chats/{sent['chat']}/")
        assert reader.generation in page.text
        again = Reader(person, reader.generation)
        await again.read(until=500)
        took.append(time.perf_counter() - started)
        await person.stop(reader.generation)
    return _times("page and text", took, 300.0)


async def stop(cluster: Cluster) -> dict[str, Any]:
    """Asked for through nginx, read on each replica in turn."""
    person = await Person(cluster).arrive()
    took, acknowledged = [], []
    for number in tqdm(range(TIMES), unit="stop"):
        reader = Pieces(person, await person.ask("count 900 pace=100"))
        reading = asyncio.create_task(reader.finish(url=cluster.replicas[number % 2]))
        while len(reader.text) < 60:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        await person.stop(reader.generation)
        acknowledged.append(time.monotonic() - started)
        await reading
        assert reader.status == "stopped"
        took.append(max(0.0, reader.times[-2] - started))  # the last one is the end
    return _times("last piece after a stop", took, 300.0) | _times("acknowledged", acknowledged)


def _times(what: str, seconds: list[float], limit: float = 0) -> dict[str, Any]:
    found = {
        f"{what}, median ms": round(quantile(seconds, 0.5) * 1000, 1),
        f"{what}, p95 ms": round(quantile(seconds, 0.95) * 1000, 1),
    }
    return found | ({f"{what}, limit of the p95 ms": limit} if limit else {})


# --- one fault again and again, while people chat ----------------------------------------------
MINUTES = float(os.environ.get("MINUTES") or 5)


def nothing_but(limit: str, *names: str) -> Callable[[Cluster], Awaitable[dict[str, Any]]]:
    """A nemesis of these faults alone; `limit` says what its figures are held against."""

    async def part(cluster: Cluster) -> dict[str, Any]:
        history = await nemesis.ordeal(cluster, MINUTES * 60, SEED, list(names))
        history.wrong += await asyncio.to_thread(nemesis.all_wrong, cluster, history)
        assert not history.wrong, history.wrong
        return {"limit": limit, **nemesis.summary(history)}

    return part


PARTS: dict[str, Callable[[Cluster], Awaitable[dict[str, Any]]]] = {
    "kills": kills, "zombies": zombies, "redis": redis, "refresh": refresh, "stop": stop,
    "deaths": nothing_but("longest pause p95 5 s", "a worker killed"),
    "hosts": nothing_but("longest pause p95 15 s", "a worker lost with its host"),
    "rolling": nothing_but(
        "no try that was told to come back",
        *(f"a {role} told to end" for role in ("worker", "realtime process", "pages process")),
    ),
    "postgres": nothing_but("nothing wrong: each send is taken, once", "PostgreSQL restarted"),
}  # fmt: skip


def main() -> None:
    for part in sys.argv[1:] or list(PARTS):
        with running_cluster(
            MAX_QUEUED="0",
            WORKER_SLOTS="16",
            MAX_ANSWER_TOKENS="4000",
            LOG_RETENTION_SECONDS="86400",  # what is counted at the end
        ) as cluster:
            figures = asyncio.run(PARTS[part](cluster))
        record(f"survive-{part}", figures, "make cluster with the simulated model")


if __name__ == "__main__":
    main()
