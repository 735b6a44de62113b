"""Another release of the site comes while people use it: other tables, other pages."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench.cluster import Cluster
from bench.reader import Reader
from bench.site import ROOT, Person
from tests.cluster.conftest import needs_nginx

pytestmark = needs_nginx

# --- row 44: other tables -----------------------------------------------------------------
SETTINGS = """
from chatsite.settings import *

MIGRATION_MODULES = {"chats": "later_chats", "inference": "later_inference"}
"""
PACKAGE = """
from {app} import migrations

__path__ = [*migrations.__path__, *__path__]
"""
COLUMN = """
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("{app}", "{last}")]
    operations = [
        migrations.AddField("{model}", "later", models.CharField(max_length=9, db_default="")),
    ]
"""
INDEX = """
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("{app}", "9998_column")]
    operations = [
        AddIndexConcurrently("{model}", models.Index(fields=["later"], name="{model}_later")),
    ]
"""
LATER = """
    SELECT count(*) FROM information_schema.columns
    WHERE column_name = 'later' AND table_name IN ('chats_message', 'inference_generation')
"""
VALID = """
    SELECT bool_and(indisvalid), count(*) FROM pg_index
    WHERE indexrelid::regclass::text LIKE '%\\_later'
"""
WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
WAITS = """
    SELECT coalesce(extract(epoch FROM max(clock_timestamp() - waitstart)), 0)::float
    FROM pg_locks WHERE NOT granted AND locktype = 'relation'
"""


def write_next_release(folder: Path) -> None:
    """A column and an index more on the two busiest tables."""
    (folder / "later_settings.py").write_text(SETTINGS)
    for app, model in (("chats", "message"), ("inference", "generation")):
        package = folder / f"later_{app}"
        package.mkdir()
        last = max((ROOT / app / "migrations").glob("0*.py")).stem
        (package / "__init__.py").write_text(PACKAGE.format(app=app))
        (package / "9998_column.py").write_text(COLUMN.format(app=app, last=last, model=model))
        (package / "9999_index.py").write_text(INDEX.format(app=app, model=model))


def set_up_next_release(cluster: Cluster, folder: Path) -> "subprocess.CompletedProcess[str]":
    """As a deployment does it, before it starts new processes."""
    later = {"DJANGO_SETTINGS_MODULE": "later_settings", "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "role.py"), "setup"], cwd=ROOT, text=True,
        env=cluster.environment | cluster.told | later, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip


@contextlib.contextmanager
def long_transaction(cluster: Cluster, seconds: float) -> Iterator[None]:
    """Somebody has read both tables, and goes only so long after an ALTER TABLE had to wait."""
    ended = threading.Event()

    def stay() -> None:
        with psycopg.connect(cluster.database_url) as own:
            for table in ("chats_message", "inference_generation"):
                own.execute(f"SELECT count(*) FROM {table}")
            reading.set()
            while not own.execute(WAITING).fetchone() and not ended.wait(0.02):
                pass
            ended.wait(seconds)

    reading = threading.Event()
    staying = threading.Thread(target=stay)
    staying.start()
    assert reading.wait(10)
    try:
        yield
    finally:
        ended.set()
        staying.join()


@contextlib.contextmanager
def lock_waits(cluster: Cluster) -> Iterator[list[float]]:
    """Looks twenty times a second how long the one who waits longest for a table has waited."""
    seconds, ended = [0.0], threading.Event()

    def look() -> None:
        with psycopg.connect(cluster.database_url, autocommit=True) as own:
            while not ended.wait(0.05):
                [longest] = own.execute(WAITS).fetchone() or [0.0]
                seconds.append(longest)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seconds
    finally:
        ended.set()
        looking.join()


@dataclass
class Crowd:
    """People who ask all the time, and what they met."""

    sends: list[float] = field(default_factory=list)  # seconds each took
    readers: list[Reader] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    has_to_end: bool = False

    async def keep_sending(self, person: Person) -> None:
        """Without waiting for the answers, so that there is a send at every moment."""
        while not self.has_to_end:
            started = time.monotonic()
            try:
                self.readers.append(Reader(person, await person.ask("count 10 pace=80")))
            except AssertionError as error:
                self.failed.append(str(error))
            self.sends.append(time.monotonic() - started)
            await asyncio.sleep(0.2)

    async def keep_reading(self, person: Person) -> None:
        while not self.has_to_end:
            reader = Reader(person, await person.ask("count 40 pace=80"))
            await reader.finish()
            self._judge(reader, 40)

    async def read_the_rest(self) -> None:
        for reader in self.readers:
            await reader.finish()
            self._judge(reader, 10)

    def _judge(self, reader: Reader, count: int) -> None:
        expected = " ".join(map(str, range(1, count + 1)))
        if (reader.text, reader.status, reader.resets) != (expected, "done", 0):
            self.failed.append(f"{reader.status}: {reader.text!r}")


async def test_row_44_a_migration_under_load_holds_nobody_up_for_a_second(
    cluster: Cluster, tmp_path: Path
):
    write_next_release(tmp_path)
    crowd = Crowd()
    people = [await Person(cluster).arrive() for _ in range(6)]
    asking = [asyncio.create_task(crowd.keep_sending(person)) for person in people[:3]]
    asking += [asyncio.create_task(crowd.keep_reading(person)) for person in people[3:]]
    await asyncio.sleep(2)
    with lock_waits(cluster) as waits, long_transaction(cluster, 4):
        done = await asyncio.to_thread(set_up_next_release, cluster, tmp_path)
    await asyncio.sleep(3)  # the old release goes on with the new tables
    crowd.has_to_end = True
    await asyncio.gather(*asking)
    await crowd.read_the_rest()
    assert done.returncode == 0, done.stderr
    with psycopg.connect(cluster.database_url) as own:
        assert own.execute(LATER).fetchone() == (2,)
        assert own.execute(VALID).fetchone() == (True, 2)
    assert crowd.failed == []
    assert len(crowd.sends) > 50
    assert max(waits) < 1
    assert max(crowd.sends) < 2  # generous: a second, on a machine with others' work
