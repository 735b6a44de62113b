"""What may happen to a cluster, by name. Each fault does its harm, and undoes it if it lasts."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import psycopg
from redis import Redis, RedisError

from bench.cluster import Cluster
from bench.site import descendants

Fault = Callable[[Cluster, random.Random], object]


def redis_of(cluster: Cluster) -> "Redis":
    return Redis(unix_socket_path=str(cluster.folder / "valkey" / "valkey.sock"))


def _one(cluster: Cluster, role: str, chance: random.Random) -> list[int]:
    found = cluster.pids_of(role)
    return [chance.choice(found)] if found else []


def killed(role: str) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> None:
        for pid in _one(cluster, role, chance):
            cluster.kill(pid)

    return fault


def told_to_end(role: str, times: int = 1) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> None:
        for pid in _one(cluster, role, chance) * times:
            cluster.kill(pid, signal.SIGTERM)
            time.sleep(0.2)

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
    def fault(cluster: Cluster, chance: random.Random) -> None:
        found = _one(cluster, role, chance)
        with stopped([pid for first in found for pid in (first, *_below(first))]):
            time.sleep(chance.uniform(least, most))

    return fault


def _below(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return descendants(pid)
    return []


def every_worker_killed(cluster: Cluster, chance: random.Random) -> None:
    for pid in cluster.pids_of("worker"):
        cluster.kill(pid)


def redis(command: Callable[["Redis"], object]) -> Fault:
    def fault(cluster: Cluster, chance: random.Random) -> None:
        with contextlib.suppress(RedisError):
            command(redis_of(cluster))

    return fault


def redis_full(cluster: Cluster, chance: random.Random) -> None:
    with contextlib.suppress(RedisError):
        redis_of(cluster).config_set("maxmemory", "1mb")
        time.sleep(chance.uniform(1, 3))
        redis_of(cluster).config_set("maxmemory", "0")


def postgres_away(cluster: Cluster, chance: random.Random) -> None:
    cluster.postgres("stop")
    time.sleep(chance.uniform(0.5, 4))
    cluster.postgres("start")


def postgres_frozen(cluster: Cluster, chance: random.Random) -> None:
    first = int((cluster.folder / "postgres" / "postmaster.pid").read_text().split()[0])
    with stopped([first, *_below(first)]):
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
