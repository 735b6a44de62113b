"""People who chat while a seeded nemesis breaks the cluster, and a checker at the end.

make nemesis MINUTES=30 SEED=7    or    python -m bench.nemesis --minutes 1 --seed 7

The seed decides the faults (of those that this machine has the tools for), their times and what
people do. What is found wrong is printed with the seed, and the command fails. The simulated model
answers; everything else is real. Who did what and when is written to a file, a line of JSON each
(--history, else one in the system's folder for such files that is kept when something is wrong).
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import httpx
import psycopg
from tqdm import tqdm
from websockets.exceptions import WebSocketException

from bench.cluster import Cluster, running_cluster
from bench.faults import FAULTS
from bench.reader import Reader
from bench.record import record
from bench.site import ROOT, Person, found_generation

PEOPLE = 12
CALM_SECONDS = (0.5, 6.0)  # between two faults
PASSING = (502, 503, 504)
LONG = (250, 30)  # numbers, tokens a second: half a minute
PATIENCE_SECONDS = 90.0
AFTERMATH_SECONDS = 30.0  # of a fault of Redis: a worker that dies now may be the one it forgot


@dataclass
class History:
    """What happened; `wrong` should stay empty."""

    path: Path | None = None  # where each event is written
    began: float = field(default_factory=time.monotonic)
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    pauses: list[float] = field(default_factory=list)
    refused: int = 0  # tries that were told to come back
    resets: int = 0
    resets_while_well: int = 0  # with no fault of Redis in the last half minute
    redis_well_at: float = 0.0  # from then on
    shown: dict[str, str] = field(default_factory=dict)  # what was read of each answer

    def note(self, who: str, what: str, **more: object) -> None:
        """An event, with the seconds since the beginning."""
        if self.path:
            event = {"at": round(time.monotonic() - self.began, 3), "who": who, "did": what}
            with self.path.open("a") as file:
                file.write(json.dumps(event | more) + "\n")


class Client:
    """One person, who asks, leaves, comes back, stops and sends twice."""

    def __init__(self, cluster: Cluster, history: History, name: str, seed: int) -> None:
        self.person, self.cluster, self.name = Person(cluster), cluster, name
        self.history, self.chance = history, random.Random(f"{seed}/{name}")

    async def insist(self, path: str, **fields: str) -> dict[str, Any]:
        """Post until it is taken, as the page's outbox does."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = await self.person.try_post(path, **fields)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in PASSING:
                assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text[:300]}"
                return dict(answer.json())
            self.history.refused += 1
            await asyncio.sleep(self.chance.uniform(0.1, 1))
        raise AssertionError(f"{path} was not taken in {PATIENCE_SECONDS:.0f} s")

    async def one_answer(self) -> None:
        is_stopped = self.chance.random() < 0.2
        count, pace = self.chance.randint(5, 150), self.chance.choice((30, 60, 120))
        if is_stopped:
            count, pace = LONG  # so long that a stop which is not heeded is seen
        fields = {"text": f"count {count} pace={pace}", "client_id": str(self._id())}
        sends = [self.insist("/chats/", **fields) for _ in range(self.chance.choice((1, 1, 1, 3)))]
        self._note("sends", **fields, times=len(sends))
        taken = [found_generation(answer) for answer in await asyncio.gather(*sends)]
        assert len(set(taken)) == 1, f"sent once, taken as {taken}"
        reader = Reader(self.person, taken[0])
        self._note("was taken", generation=taken[0])
        if is_stopped:
            await self._read_some(reader)
            self._note("stops", generation=taken[0], seen=len(reader.text))
            await self.insist(f"/generations/{taken[0]}/", _method="delete")
        elif self.chance.random() < 0.4:
            await self._read_some(reader)
            self._note("leaves", generation=taken[0], seen=len(reader.text))
            await asyncio.sleep(self.chance.uniform(0, 4))  # away, which stops nothing
        await reader.finish(self.chance.choice(["", *self.cluster.replicas]), PATIENCE_SECONDS)
        self._judge(reader, " ".join(map(str, range(1, count + 1))), is_stopped)

    def _note(self, what: str, **more: object) -> None:
        self.history.note(f"person {self.name}", what, **more)

    def _id(self) -> UUID:
        return UUID(int=self.chance.getrandbits(128), version=4)

    async def _read_some(self, reader: Reader) -> None:
        with contextlib.suppress(OSError, WebSocketException):
            await reader.read(self.chance.randint(1, 200))

    def _judge(self, reader: Reader, expected: str, is_stopped: bool) -> None:
        self.history.answers[reader.status] += 1
        self.history.pauses.append(reader.longest_pause)
        self.history.resets += reader.resets
        self.history.shown[reader.generation] = reader.text
        pause = round(reader.longest_pause, 3)
        self._note("has read", generation=reader.generation, status=reader.status,
                   characters=len(reader.text), resets=reader.resets, pause=pause)  # fmt: skip
        if reader.resets and reader.reset_at > self.history.redis_well_at:
            self.history.resets_while_well += 1
            self.history.wrong.append(f"{reader.generation} was taken back with Redis well")
        if reader.status == "stopped" and is_stopped:
            assert expected.startswith(reader.text), f"stopped with {reader.text[-80:]!r}"
        else:
            assert (reader.status, reader.text) == ("done", expected), (
                f"{reader.generation} {reader.status} with {reader.text[-80:]!r}"
            )

    async def go_on(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                await self.one_answer()
            except (AssertionError, TimeoutError) as error:
                self.history.wrong.append(str(error) or type(error).__name__)
                self._note("found wrong", because=self.history.wrong[-1])


async def harm(
    cluster: Cluster, history: History, chance: random.Random, until: float, names: list[str]
) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(chance.uniform(*CALM_SECONDS))
        name = chance.choice(names)
        print(f"{time.strftime('%X')} {name}", file=sys.stderr)
        history.note("nemesis", "begins", fault=name)
        if "Redis" in name:
            history.redis_well_at = math.inf
        if await asyncio.to_thread(FAULTS[name], cluster, chance) is not False:
            history.faults[name] += 1  # something was there to be broken
        history.note("nemesis", "has done", fault=name)
        if "Redis" in name:
            history.redis_well_at = time.monotonic() + AFTERMATH_SECONDS


async def ordeal(
    cluster: Cluster, seconds: float, seed: int, names: list[str], path: Path | None = None
) -> History:
    """People arrive; faults and questions for so long; everybody waits for their last answer."""
    history = History(path)
    clients = [Client(cluster, history, str(number), seed) for number in range(PEOPLE)]
    for client in clients:
        await client.person.arrive()
    until = time.monotonic() + seconds
    nemesis = harm(cluster, history, random.Random(seed), until, names)
    progress = asyncio.create_task(_show(seconds, history))
    await asyncio.gather(nemesis, *(client.go_on(until) for client in clients))
    progress.cancel()
    return history


async def _show(seconds: float, history: History) -> None:
    with tqdm(total=round(seconds), unit="s", disable=not sys.stderr.isatty()) as bar:
        while True:
            await asyncio.sleep(1)
            bar.update()
            answers, faults = history.answers.total(), history.faults.total()
            bar.set_postfix(answers=answers, faults=faults, wrong=len(history.wrong))


def wrong_in_the_database(cluster: Cluster, seconds: int = 60) -> list[str]:
    """A process of its own: this one may be set up for another database."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.checker", str(seconds)], cwd=ROOT, text=True, check=False,
        env=os.environ | cluster.told, stdout=subprocess.PIPE,
    )  # fmt: skip
    failed = [f"the checker ended with {done.returncode}"] if done.returncode else []
    return failed + done.stdout.splitlines()


def shown_otherwise(cluster: Cluster, shown: dict[str, str]) -> list[str]:
    """Answers of which somebody read another text than the database has."""
    sql = "SELECT id::text, text FROM inference_generation WHERE id = ANY(%s::uuid[])"
    with psycopg.connect(cluster.database_url) as own:
        kept: dict[str, str] = dict(own.execute(sql, [list(shown)]).fetchall())
    return [
        f"{pk} was shown as {text[-60:]!r} and is kept as {kept.get(pk, '')[-60:]!r}"
        for pk, text in shown.items()
        if kept.get(pk) != text
    ]


def all_wrong(cluster: Cluster, history: History) -> list[str]:
    """What the database has that it should not have."""
    return wrong_in_the_database(cluster) + shown_otherwise(cluster, history.shown)


def summary(history: History) -> dict[str, Any]:
    pauses = sorted(history.pauses)
    return {
        "answers": {status: {"times": count} for status, count in history.answers.items()},
        "faults": {name: {"times": count} for name, count in history.faults.most_common()},
        "tries that were told to come back": history.refused,
        "answers taken back to what was saved": history.resets,
        "of these, without a fault of Redis": history.resets_while_well,
        "longest pause of an answer, median s": round(median(pauses), 2),
        "longest pause of an answer, p95 s": round(quantiles(pauses, n=20)[-1], 2),
        "longest pause of all, s": round(pauses[-1], 2),
        "wrong": len(history.wrong),
        "what was wrong": history.wrong,
    }


def run(seconds: float, seed: int, names: list[str], path: Path) -> dict[str, Any]:
    # The checker wants the logs of answers that ended long ago too.
    with running_cluster(LOG_RETENTION_SECONDS="86400") as cluster:
        history = asyncio.run(ordeal(cluster, seconds, seed, names, path))
        history.wrong += all_wrong(cluster, history)
    return summary(history)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.nemesis")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", nargs="*", choices=list(FAULTS), help="of the faults, these")
    parser.add_argument("--history", type=Path, help="a new file for who did what and when")
    return parser.parse_args()


def _lines(figures: dict[str, Any], seed: int) -> Iterator[str]:
    for line in figures["what was wrong"]:
        yield f"wrong: {line}"
    yield f"seed {seed}: {figures['wrong']} wrong"


def main() -> None:
    wanted = arguments()
    print(f"seed {wanted.seed}", file=sys.stderr)
    path = wanted.history or Path(tempfile.mkdtemp(prefix="nemesis-")) / "history.jsonl"
    print(f"who did what and when: {path}", file=sys.stderr)
    figures = run(wanted.minutes * 60, wanted.seed, wanted.only or list(FAULTS), path)
    note = f"{wanted.minutes} minutes, seed {wanted.seed}, {PEOPLE} people, simulated model"
    record(f"nemesis-{wanted.seed}", figures, note)
    print(*_lines(figures, wanted.seed), sep="\n")
    if not wanted.history and not figures["wrong"]:
        shutil.rmtree(path.parent)
    sys.exit(bool(figures["wrong"]))


if __name__ == "__main__":
    main()
