"""`manage.py serve` on a disk that says it could not keep what it was told to keep.

SQLite goes on (a failed checkpoint is told to nobody), so the site does too: nothing is lost as
long as the machine has power. That the disk itself forgets is not tested.
"""

import asyncio
import shutil
import sqlite3
from uuid import UUID, uuid4

import pytest

from bench.faults import system_calls_failing
from bench.reader import Reader
from bench.site import Person, site
from tests.faults.workers import ALL

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("strace"), reason="needs strace (Debian, Ubuntu: apt-get install strace)"
    ),
    pytest.mark.skipif(not ALL, reason="takes most of a minute: make faults"),
]
KEPT = "SELECT client_id FROM chats_message WHERE client_id IS NOT NULL"
SENDS = 150  # of 32 KB each: the database's log is carried over several times meanwhile


async def test_row_27_with_sqlite_nothing_breaks_while_a_disk_keeps_saying_that_it_failed():
    with site("simulated", DRAIN_SECONDS="1") as running:
        person = await Person(running).arrive()
        reader = Reader(person, await person.ask("count 200 pace=30"))
        reading = asyncio.create_task(reader.finish())
        pids = [running.pid_of("web"), running.pid_of("worker")]
        with system_calls_failing(pids, "fsync,fdatasync:error=EIO") as calls:
            answers = [await send(person) for _ in range(SENDS)]
            failed = calls.read_text().count("INJECTED")
        running.kill_everything()
        with sqlite3.connect(running.data / "chatsite.sqlite3") as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            kept = {UUID(row[0]) for row in database.execute(KEPT)}
        running.start()
        await reading
    taken = {sent for sent, status in answers if status == 200}
    print(f"{failed} calls failed, {len(taken)} of {SENDS} taken")
    assert failed > 0
    assert {status for _, status in answers} <= {200, 503}
    assert taken <= kept
    assert (reader.text, reader.status) == (" ".join(map(str, range(1, 201))), "done")


async def send(person: Person) -> tuple[UUID, int]:
    sent = uuid4()
    text = "echo " + " " * 30_000 + "."
    return sent, (await person.try_post("/chats/", text=text, client_id=str(sent))).status_code
