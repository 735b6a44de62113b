"""Whether twice the workers answer twice as much: python -m bench.workers

A cluster with the simulated model. Workers have one slot each and are forks, the queue is full
from the start, answers are slow, so that two cores can bear 64 of them: what is measured is
whether workers get in each other's way at the queue, the log and the database.
"""

import asyncio
import os
import time
from typing import Any

import psycopg
from redis import Redis

from bench.cluster import Cluster, running_cluster
from bench.faults import stopped
from bench.record import record
from bench.site import Person
from bench.survive import Crew

COUNTS = [int(count) for count in (os.environ.get("WORKERS") or "1 2 4 16 64").split()]
EACH = 4  # answers for each worker
QUESTION = "count 20 pace=5"  # 50 tokens: ten seconds
LEAST = 0.95


async def fill(cluster: Cluster, answers: int) -> None:
    """By one person: nobody is limited here, and the order is the same."""
    person = await Person(cluster).arrive()
    for _ in range(answers):
        await person.ask(QUESTION)


def give_connections(cluster: Cluster, count: int) -> None:
    """64 workers need more than PostgreSQL's usual hundred."""
    with psycopg.connect(cluster.database_url, autocommit=True) as database:
        database.execute(f"ALTER SYSTEM SET max_connections = {count:d}".encode())
    cluster.restart_postgres()
    time.sleep(3)


def ended(database: "psycopg.Connection[Any]") -> list[tuple[float, float]]:
    """When the answers to our question began and ended, in seconds of the database's clock."""
    sql = """
        SELECT EXTRACT(EPOCH FROM started_at), EXTRACT(EPOCH FROM finished_at)
        FROM inference_generation WHERE purpose = 'chat' AND log_characters = 50
        AND status = 'done'
    """
    return [(float(start), float(end)) for start, end in database.execute(sql).fetchall()]


def measure(count: int) -> float:
    """Answers a second of so many workers, from the first one's begin to the last one's end."""
    with running_cluster(MAX_QUEUED="0") as cluster, stopped(cluster.pids_of("worker")):
        give_connections(cluster, 1000)
        asyncio.run(fill(cluster, count * EACH))
        cluster.environment["WORKER_SLOTS"] = "1"
        with psycopg.connect(cluster.database_url, autocommit=True) as database:
            move(database, 50)  # out of the lane of these workers, until all are there
            crew = Crew(cluster, count, lanes="interactive")
            try:
                while ready(database) < count:
                    time.sleep(0.2)
                move(database, -50)
                Redis.from_url(cluster.told["REDIS_URL"]).publish("chatsite:bell:work", "")
                while len(times := ended(database)) < count * EACH:
                    time.sleep(0.5)
            finally:
                crew.close()
    return len(times) / (max(end for _, end in times) - min(start for start, _ in times))


def move(database: "psycopg.Connection[Any]", by: int) -> None:
    sql = "UPDATE inference_generation SET priority = priority + %s WHERE status = 'queued'"
    database.execute(sql, [by])


def ready(database: "psycopg.Connection[Any]") -> int:
    sql = "SELECT COUNT(*) FROM inference_worker WHERE state = 'ready' AND slots = 1"
    [(count,)] = database.execute(sql)
    return int(count)


def main() -> None:
    rates = {count: measure(count) for count in COUNTS}
    rows = {
        str(count): {
            "answers a second": round(rate, 3),
            "of linear": round(rate / count / rates[COUNTS[0]] * COUNTS[0], 3),
            "limit": LEAST,
        }
        for count, rate in rates.items()
    }
    record("workers", {"workers": rows}, f"{EACH} answers of ten seconds for each worker")


if __name__ == "__main__":
    main()
