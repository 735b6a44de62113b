"""Whether twice the workers answer twice as much: python -m bench.workers

A cluster with the simulated model. Workers have one slot each and are forks, the queue is never
empty, answers are slow, so that two cores can bear 64 of them: what is measured is whether workers
get in each other's way at the queue, the log and the database. Answers differ in length, as
people's do (LENGTHS="20 20": all the same, so that all workers end and claim at the same moment).
"""

import asyncio
import os
import random
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
EACH = 11  # answers for each worker, of five to thirteen seconds: some are left at the end
SHORTEST, LONGEST = (int(count) for count in (os.environ.get("LENGTHS") or "15 25").split())
PACE = 5  # tokens a second; a token is a character
SETTLED, SECONDS = 40, 40
LEAST = 0.95


async def fill(cluster: Cluster, answers: int) -> None:
    """By one person: nobody is limited here, and the order is the same."""
    person = await Person(cluster).arrive()
    lengths = random.Random(7)
    for _ in range(answers):
        await person.ask(f"count {lengths.randint(SHORTEST, LONGEST)} pace={PACE}")


def give_connections(cluster: Cluster, count: int) -> None:
    """64 workers need more than PostgreSQL's usual hundred."""
    with psycopg.connect(cluster.database_url, autocommit=True) as database:
        database.execute(f"ALTER SYSTEM SET max_connections = {count:d}".encode())
    cluster.restart_postgres()
    time.sleep(3)


def saved(database: "psycopg.Connection[Any]") -> tuple[int, float]:
    """Tokens of all answers that are in the database, and its clock in seconds."""
    sql = """
        SELECT SUM(log_characters), EXTRACT(EPOCH FROM CLOCK_TIMESTAMP())
        FROM inference_generation WHERE purpose = 'chat'
    """
    [(tokens, now)] = database.execute(sql)
    return int(tokens), float(now)


def measure(count: int) -> float:
    """Tokens a second of so many workers while all of them have something to do."""
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
                time.sleep(SETTLED)
                tokens, started = saved(database)
                time.sleep(SECONDS)
                more, now = saved(database)
                assert has_queued(database), "some workers had nothing to do"
            finally:
                crew.close()
    return (more - tokens) / (now - started)


def has_queued(database: "psycopg.Connection[Any]") -> bool:
    waiting = "SELECT 1 FROM inference_generation WHERE status = 'queued' AND purpose = 'chat'"
    [(is_so,)] = database.execute(f"SELECT EXISTS ({waiting})")
    return bool(is_so)


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
            "tokens a second": round(rate, 2),
            "of linear": round(rate / count / rates[COUNTS[0]] * COUNTS[0], 3),
            "limit": LEAST,
        }
        for count, rate in rates.items()
    }
    setting = f"{PACE} tokens a second each, for {SECONDS} s; numbers up to {SHORTEST} to {LONGEST}"
    record("workers", {"workers": rows}, setting)


if __name__ == "__main__":
    main()
