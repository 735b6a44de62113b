"""What may happen to a cluster, by name. Each fault does its harm, and undoes it if it lasts."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
from redis import Redis, RedisError

from bench.beside import FAKETIME, another_worker, clock_set
from bench.cluster import Cluster
from bench.site import command_of, descendants

Fault = Callable[[Cluster, random.Random], object]


def redis_of(cluster: Cluster) -> "Redis":
    return Redis(unix_socket_path=str(cluster.folder / "valkey" / "valkey.sock"))


def _one(cluster: Cluster, role: str, chance: random.Random) -> list[int]:
    found = cluster.pids_of(role)
    return [chance.choice(found)] if found else []


def killed(role: str) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> bool:
        found = _one(cluster, role, chance)
        for pid in found:
            cluster.kill(pid)
        return bool(found)

    return fault


def told_to_end(role: str, times: int = 1) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> bool:
        found = _one(cluster, role, chance)
        for pid in found * times:
            cluster.kill(pid, signal.SIGTERM)
            time.sleep(0.2)
        return bool(found)

    return fault


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Frozen: alive, and silent."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def frozen(role: str, least: float, most: float) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> bool:
        found = _one(cluster, role, chance)
        with stopped([pid for first in found for pid in (first, *descendants(first))]):
            time.sleep(chance.uniform(least, most) if found else 0)
        return bool(found)

    return fault


@contextlib.contextmanager
def files_limited(pids: list[int], more: int) -> Iterator[None]:
    """So many more than each has open now; fewer than it has when that is negative."""
    before = [resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids]
    try:
        for pid, (_, hard) in zip(pids, before, strict=True):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (files_of(pid) + more, hard))
        yield
    finally:
        for pid, limits in zip(pids, before, strict=True):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def files_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def without_files(role: str) -> Fault:
    """Of one replica, those processes that serve: nothing more can be opened, for some seconds."""

    def fault(cluster: Cluster, chance: random.Random) -> bool:
        found = [below for pid in _one(cluster, role, chance) for below in descendants(pid)]
        with contextlib.suppress(ProcessLookupError, FileNotFoundError), files_limited(found, 0):
            time.sleep(chance.uniform(1, 4))
        return bool(found)

    return fault


def a_worker_in_another_time(cluster: Cluster, chance: random.Random) -> None:
    """It comes, takes answers, and is killed."""
    with another_worker(cluster, **clock_set(chance.choice(("+5m", "-5m")))):
        time.sleep(chance.uniform(5, 12))


def every_worker_killed(cluster: Cluster, chance: random.Random) -> None:
    for pid in cluster.pids_of("worker"):
        cluster.kill(pid)


def redis(command: Callable[["Redis"], object]) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> bool:
        try:
            command(redis_of(cluster))
        except RedisError:  # it is just being started again
            return False
        return True

    return fault


def redis_full(cluster: Cluster, chance: random.Random) -> bool:
    """Until it is started again it would stay so: no failure of the undo may be passed over."""
    if not redis(lambda client: client.config_set("maxmemory", "1mb"))(cluster, chance):
        return False
    time.sleep(chance.uniform(1, 3))
    for _ in range(50):
        if redis(lambda client: client.config_set("maxmemory", "0"))(cluster, chance):
            return True
        time.sleep(0.2)
    raise AssertionError("Redis could not be told that it has room again")


def postgres_away(cluster: Cluster, chance: random.Random) -> None:
    with postgres_stopped(cluster):
        time.sleep(chance.uniform(0.5, 4))


@contextlib.contextmanager
def postgres_stopped(cluster: Cluster) -> Iterator[None]:
    cluster.postgres("stop")
    try:
        yield
    finally:
        cluster.postgres("start")


@contextlib.contextmanager
def system_calls_failing(pids: list[int], what: str) -> Iterator[Path]:
    """`what` as strace's "inject" has it, in these processes and not in what they start later.

    The file tells each that has failed.
    """
    with tempfile.TemporaryDirectory() as name:
        told = Path(name) / "calls"
        each = [word for pid in pids for word in ("-p", str(pid))]
        which = ["-e", f"trace={what.partition(':')[0]}", "-e", f"inject={what}"]
        tracer = subprocess.Popen(["strace", "-f", "-qq", "-o", str(told), *which, *each])
        try:
            while not all(map(_is_traced, pids)):
                assert tracer.poll() is None or not any(map(command_of, pids))
                time.sleep(0.01)
            yield told
        finally:
            tracer.terminate()
            tracer.wait()


def _is_traced(pid: int) -> bool:
    """Or has ended already, of what was done to it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return "TracerPid:\t0" not in lines
    return True


def disk_failing(what: str) -> Fault:
    """PostgreSQL's, for a moment."""

    def fault(cluster: Cluster, chance: random.Random) -> bool:
        first = first_of_postgres(cluster)
        with contextlib.suppress(AssertionError):
            with system_calls_failing(descendants(first), what) as told:
                time.sleep(chance.uniform(0.3, 2))
                return told.exists() and "INJECTED" in told.read_text()
        return False

    return fault


def first_of_postgres(cluster: Cluster) -> int:
    return int((cluster.folder / "postgres" / "postmaster.pid").read_text().split()[0])


def postgres_frozen(cluster: Cluster, chance: random.Random) -> None:
    first = first_of_postgres(cluster)
    with stopped([first, *descendants(first)]):
        time.sleep(chance.uniform(1, 5))


def connections_ended(cluster: Cluster, chance: random.Random) -> None:
    """Each that PostgreSQL has, three times in a row."""
    for _ in range(3):
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(cluster.database_url, autocommit=True) as own,
        ):
            own.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        time.sleep(0.3)


FAULTS: dict[str, Fault] = {
    "a worker killed": killed("worker"),
    "every worker killed": every_worker_killed,
    "a worker frozen": frozen("worker", 2, 15),
    "a worker lost with its host": frozen("worker", 16, 20),
    "a worker told to end": told_to_end("worker"),
    "a worker told to end twice": told_to_end("worker", 2),
    "a realtime process killed": killed("realtime"),
    "a realtime process told to end": told_to_end("realtime"),
    "a realtime process frozen": frozen("realtime", 1, 6),
    "a pages process killed": killed("pages"),
    "a pages process told to end": told_to_end("pages"),
    "nginx killed": killed("nginx"),
    "beat killed": killed("beat"),
    "Redis killed": killed("valkey"),
    "Redis frozen": frozen("valkey", 0.5, 8),
    "Redis emptied": redis(lambda client: client.flushall()),
    "Redis full": redis_full,
    "every subscription cut": redis(lambda client: client.client_kill_filter(_type="pubsub")),
    "PostgreSQL restarted": lambda cluster, chance: cluster.postgres("restart"),
    "PostgreSQL away": postgres_away,
    "PostgreSQL frozen": postgres_frozen,
    "every connection to PostgreSQL ended": connections_ended,
}
if hasattr(resource, "prlimit"):  # Linux
    FAULTS["a realtime process out of files"] = without_files("realtime")
    FAULTS["a pages process out of files"] = without_files("pages")
if shutil.which("strace"):
    FAULTS["PostgreSQL's disk failing"] = disk_failing("fsync,fdatasync:error=EIO")
    FAULTS["PostgreSQL's disk full"] = disk_failing("pwritev,pwrite64,fallocate:error=ENOSPC")
if FAKETIME:
    FAULTS["a worker in another time"] = a_worker_in_another_time
