"""Another release of the site comes while people use it: other tables, other pages."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bench.beside import another_realtime
from bench.cluster import Cluster
from bench.site import ROOT, Person
from tests.chatsite.test_serve import COUNTED
from tests.cluster.conftest import begin, needs_nginx
from tests.cluster.crowd import Crowd
from tests.faults.workers import ALL

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


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
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


# --- row 43: other pages ------------------------------------------------------------------
APP = """
from django.apps import AppConfig


class LaterApp(AppConfig):
    name = "later_app"

    def ready(self):
        from chats import frames

        frames.PROTOCOL, frames.OLDEST = {protocol}, {oldest}
"""
APP_SETTINGS = """
from chatsite.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "later_app.apps.LaterApp"]
"""


@contextlib.contextmanager
def realtime_of_a_later_release(
    cluster: Cluster, folder: Path, protocol: int, oldest: int
) -> Iterator[str]:
    """A replica whose frames are of another protocol; its address."""
    (folder / "later_settings.py").write_text(APP_SETTINGS)
    (folder / "later_app").mkdir()
    (folder / "later_app" / "__init__.py").touch()
    (folder / "later_app" / "apps.py").write_text(APP.format(protocol=protocol, oldest=oldest))
    later = {"DJANGO_SETTINGS_MODULE": "later_settings", "PYTHONPATH": str(folder)}
    with another_realtime(cluster, **later) as url:
        yield url


async def hello(person: Person, url: str) -> tuple[int, int]:
    """What a replica says it speaks, and the code it closes with, 0 if it does not."""
    async with person.socket(url) as socket:
        frame = json.loads(await socket.recv())
        assert frame["type"] == "hello"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await socket.wait_closed()
        return frame["protocol"], socket.close_code or 0


@pytest.mark.parametrize("stated", ["", "?protocol=1"] if ALL else ["?protocol=1"])
async def test_row_43_a_page_of_today_reads_on_at_a_server_of_tomorrow_and_back(
    cluster: Cluster, tmp_path: Path, stated: str
):
    reader = await begin(cluster, "count 250 pace=60", until=60)
    reader.person.protocol = stated
    with realtime_of_a_later_release(cluster, tmp_path, protocol=2, oldest=1) as tomorrow:
        for url in (tomorrow, cluster.replicas[0], tomorrow):
            await reader.read(len(reader.text) + 60, url)
        assert await hello(reader.person, tomorrow) == (1, 0)
        await reader.finish(tomorrow)
    assert (reader.text, reader.resets) == (" ".join(map(str, range(1, 251))), 0)


async def test_row_43_a_page_of_tomorrow_reads_at_a_server_of_today(cluster: Cluster):
    reader = await begin(cluster)
    reader.person.protocol = "?protocol=2"
    assert await hello(reader.person, cluster.url) == (1, 0)
    async with reader.person.socket() as socket:
        await socket.send('{"type": "a frame of tomorrow"}')
        watching = {"type": "watch", "generation": reader.generation, "tomorrow": True}
        await socket.send(json.dumps({**watching, "epoch": reader.epoch, "after": reader.seq}))
        async for text in socket:
            frame = json.loads(text)
            if frame.get("generation") == reader.generation:
                reader.take(frame)
            if reader.status:
                break
    assert (reader.text, reader.status) == (COUNTED, "done")


async def test_row_43_a_page_that_is_too_old_is_told_and_loses_nothing(
    cluster: Cluster, tmp_path: Path
):
    reader = await begin(cluster)
    with realtime_of_a_later_release(cluster, tmp_path, protocol=3, oldest=2) as url:
        assert await hello(reader.person, url) == (3, 1003)
        reader.person.protocol = "?protocol=3"  # loaded anew, as it was told to
        assert await hello(reader.person, url) == (3, 0)
        await reader.finish(url)
    assert (reader.text, reader.status) == (COUNTED, "done")
