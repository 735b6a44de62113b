"""Memory that is short, a disk that fails, a disk that is full."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from bench.cluster import Cluster
from bench.faults import first_of_postgres, system_calls_failing
from bench.nemesis import wrong_in_the_database
from bench.reader import Reader
from bench.site import Person, descendants, found_generation
from tests.cluster.conftest import begin, needs_nginx
from tests.faults.workers import ALL

pytestmark = needs_nginx
GROUPS = Path("/sys/fs/cgroup/memory")
COUNTED = " ".join(map(str, range(1, 201)))
LONG = "echo " + "although " * 1500 + "pace=500"


def own_group() -> Path | None:
    """Where a memory group of ours could be; None when there can be none."""
    found = GROUPS / f"chatsite-test-{os.getpid()}"
    with contextlib.suppress(OSError):
        found.mkdir()
        found.rmdir()
        return found
    return None


@contextlib.contextmanager
def memory_limited(group: Path, pids: list[int], size: int) -> Iterator[None]:
    """What they ask for from now on: the kernel kills who asks for more than that."""
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(size))
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (GROUPS / "cgroup.procs").write_text(left)
        group.rmdir()


def killed_in(group: Path) -> int:
    words = (group / "memory.oom_control").read_text().split()
    return int(words[words.index("oom_kill") + 1])


@pytest.mark.skipif(not own_group(), reason="needs root and memory groups (cgroup v1)")
@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
async def test_row_30_workers_that_the_kernel_kills_for_memory_are_started_again(cluster: Cluster):
    group = own_group()
    assert group
    supervisor = cluster.process
    reader = await begin(cluster, "count 200 pace=40")
    finishing = asyncio.create_task(reader.finish())
    before = cluster.pids_of("worker")
    async with asyncio.timeout(60):
        with memory_limited(group, before, 256 * 1024):
            while set(before) & set(cluster.pids_of("worker")):
                await reader.person.ask(LONG)
                await asyncio.sleep(0.5)
            killed = killed_in(group)
    await finishing
    assert killed == 2
    assert supervisor
    assert supervisor.poll() is None
    assert (reader.text, reader.status, reader.resets) == (COUNTED, "done", 0)
    print(f"longest pause {reader.longest_pause:.1f} s")
    assert reader.longest_pause < 15
    assert cluster.log.count("ended with -9") >= 2


async def sent_until_taken(person: Person, **fields: str) -> tuple[str, list[httpx.Response]]:
    """The run, and what was answered before."""
    refused = []
    async with asyncio.timeout(60):
        while (answer := await person.try_post("/chats/", **fields)).status_code != 200:
            refused.append(answer)
            await asyncio.sleep(0.3)
    return found_generation(answer.json()), refused


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace (Debian: apt-get install)")
async def test_row_27_postgresql_panics_when_a_disk_does_not_keep_what_it_was_told(
    cluster: Cluster,
):
    """It recovers from its log; nothing that was taken is lost or taken twice."""
    reader = await begin(cluster, "count 200 pace=60")
    person = reader.person
    fields = [{"text": "count 3", "client_id": str(uuid4())} for _ in range(8)]
    told = cluster.folder / "postgres" / "log"
    panics = told.read_text().count("PANIC")
    with system_calls_failing(descendants(first_of_postgres(cluster)), "fsync,fdatasync:error=EIO"):
        tries = [await sent_until_taken(person, **one) for one in fields]
    assert told.read_text().count("PANIC") > panics, told.read_text()[-2000:]
    refused = [answer.status_code for _, before in tries for answer in before]
    assert set(refused) <= {503}
    again = [found_generation((await person.try_post("/chats/", **one)).json()) for one in fields]
    assert again == [generation for generation, _ in tries]
    others = [Reader(person, generation) for generation in again]
    await asyncio.gather(reader.finish(), *(other.finish() for other in others))
    print(f"{len(refused)} refused, longest pause {reader.longest_pause:.1f} s")
    assert {(other.text, other.status) for other in others} == {("1 2 3", "done")}
    assert (reader.text, reader.status) == (COUNTED, "done")
    assert wrong_in_the_database(cluster) == []


# --- a full disk ------------------------------------------------------------------------------
@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(Exception):
        with small_disk(Path(name), 1):
            return True
    return False


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """To the last byte."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def on_a_small_disk() -> Iterator[Cluster]:
    """Its PostgreSQL alone."""
    with tempfile.TemporaryDirectory(prefix="chatsite-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "postgres").mkdir()
        with small_disk(folder / "postgres", 192):
            made = Cluster(folder)
            made.start()
            try:
                yield made
            finally:
                assert made.stop() == 0


@pytest.mark.skipif(not ALL, reason="a cluster of its own: make faults")
@pytest.mark.skipif(not can_mount(), reason="needs root: a small file system to fill")
async def test_row_26_a_full_disk_of_postgresql_is_told_and_is_over_when_there_is_room(
    on_a_small_disk: Cluster,
):
    cluster = on_a_small_disk
    reader = await begin(cluster, "count 200 pace=25")
    finishing = asyncio.create_task(reader.finish())
    person, taken = reader.person, []
    with filled(cluster.folder / "postgres"):
        async with asyncio.timeout(120):
            while (answer := await person.try_post("/chats/", **large())).status_code == 200:
                taken.append(found_generation(answer.json()))
        home = await person.http.get("/")
        await asyncio.sleep(5)  # the answer under way cannot be saved
        assert not reader.status, "it ended too soon to tell"
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["code"] == "away"
    assert home.status_code == 200
    last, _ = await sent_until_taken(person, **large())
    readers = [Reader(person, generation) for generation in (*taken, last)]
    await asyncio.gather(finishing, *(one.finish() for one in readers))
    print(f"{len(taken)} taken")
    assert {(one.text, one.status) for one in readers} == {("1 2 3", "done")}
    assert (reader.text, reader.status) == (COUNTED, "done")
    assert wrong_in_the_database(cluster) == []


def large() -> dict[str, str]:
    return {"text": f"count 3 {'x' * 20_000}", "client_id": str(uuid4())}
