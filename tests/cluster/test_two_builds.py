"""A rolling upgrade between two real builds: an earlier commit's processes and today's together."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bench.beside import another_realtime, another_worker
from bench.cluster import Cluster, cluster_folder, running
from bench.faults import stopped
from bench.reader import Reader
from bench.site import ROOT, Person, command_of
from tests.cluster.conftest import needs_nginx
from tests.cluster.crowd import Crowd
from tests.cluster.test_workers import Elsewhere
from tests.faults.workers import ALL

pytestmark = [
    *needs_nginx,
    pytest.mark.skipif(not ALL, reason="the other upgrade tests have its parts: make faults"),
]
BEFORE = os.environ.get("UPGRADE_FROM", "d508160")  # six migrations ago; no release is tagged yet
LONG = "count 280 pace=30"  # half a minute
WHOLE = " ".join(map(str, range(1, 281)))


@pytest.fixture(scope="module")
def earlier() -> Iterator[Path]:
    """The sources of an earlier build."""
    known = ["git", "cat-file", "-e", BEFORE]
    if subprocess.run(known, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"needs commit {BEFORE} of the repository's history")
    with cluster_folder() as folder:
        archive = subprocess.run(
            ["git", "archive", BEFORE], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        (folder / "node_modules").symlink_to(ROOT / "node_modules")
        yield folder


@pytest.fixture
def cluster(earlier: Path) -> Iterator[Cluster]:
    """All of the earlier build, with its tables."""
    with cluster_folder() as folder:
        made = Cluster(folder)
        made.command = [sys.executable, str(earlier / "deploy" / "cluster.py")]
        with running(made):
            yield made


def upgrade_tables(cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "role.py"), "setup"], cwd=ROOT, text=True,
        env=cluster.environment | cluster.told, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


async def grow(reader: Reader, url: str, characters: int = 60) -> None:
    async with asyncio.timeout(30):  # a lease runs out first
        await reader.read(len(reader.text) + characters, url)


async def until_taken(cluster: Cluster, reader: Reader, fence: int = 0) -> int:
    """By another worker than the one that has raised the fence so far; the new fence."""
    run = "SELECT fence FROM inference_generation WHERE id = %s"
    with psycopg.connect(cluster.database_url, autocommit=True) as own:
        async with asyncio.timeout(30):  # a lease runs out first
            while True:
                [now] = own.execute(run, [reader.generation]).fetchone() or [0]
                if now > (fence or 1):
                    return int(now)
                await asyncio.sleep(0.1)


async def test_row_43_answers_pass_to_and_fro_between_an_earlier_build_and_todays(
    cluster: Cluster, earlier: Path
):
    workers = cluster.pids_of("worker")
    assert all(str(earlier).encode() in command_of(pid) for pid in workers)
    crowd = Crowd()
    people = [await Person(cluster).arrive() for _ in range(4)]
    asking = [asyncio.create_task(crowd.keep_reading(person)) for person in people[:2]]
    asking += [asyncio.create_task(crowd.keep_sending(people[2]))]
    reader = Reader(people[3], await people[3].ask(LONG))
    before = cluster.replicas[0]
    await grow(reader, before)
    await asyncio.to_thread(upgrade_tables, cluster)
    await grow(reader, before)
    with another_realtime(cluster) as today:
        with another_worker(cluster) as worker:
            await grow(reader, today)
            with stopped(cluster.pids_of("worker")):  # today's takes the answer over
                taken = await until_taken(cluster, reader)
                for url in (before, today):
                    await grow(reader, url)
                newcomer = await Person(Elsewhere(today)).arrive()
                os.killpg(worker.pid, signal.SIGKILL)  # and an earlier one takes it back
            await until_taken(cluster, reader, taken)
            for url in (today, before):
                await grow(reader, url)
        theirs = Reader(newcomer, await newcomer.ask("count 100 pace=80"))
        await grow(theirs, before)
        await asyncio.gather(theirs.finish(today), reader.finish(before))
    crowd.has_to_end = True
    await asyncio.gather(*asking)
    await crowd.read_the_rest()
    assert (reader.text, reader.status, reader.resets) == (WHOLE, "done", 0)
    assert (theirs.text, theirs.resets) == (" ".join(map(str, range(1, 101))), 0)
    assert crowd.failed == []
    assert crowd.read > 10
