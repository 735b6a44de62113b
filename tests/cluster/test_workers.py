"""Workers that are not well: far from the database, or in another time."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from bench.beside import FAKETIME, another_realtime, another_worker, clock_set
from bench.cluster import Cluster
from bench.faults import stopped
from bench.proxy import Proxy
from bench.reader import Reader
from bench.site import Person, found_generation
from tests.chatsite.test_serve import COUNT, COUNTED
from tests.cluster.conftest import needs_nginx
from tests.faults.workers import ALL

pytestmark = needs_nginx
SLEEP = """\
import select
import time

# Python's own asks for a moment of the clock, which faketime does not understand.
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


@dataclass
class Elsewhere:
    """A process that is asked past nginx."""

    url: str


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
async def test_row_9_a_worker_whose_database_is_slow_gives_its_answer_away(cluster: Cluster):
    person = await Person(cluster).arrive()
    socket = str(cluster.folder / "postgres" / ".s.PGSQL.5432")
    async with Proxy(path=socket) as line:
        there = line.url.replace("http://", "postgresql://postgres@") + "/postgres"
        with another_worker(cluster, DATABASE_URL=there):
            with stopped(cluster.pids_of("worker")):
                reader = Reader(person, await person.ask("count 200 pace=40"))
                async with asyncio.timeout(30):
                    await reader.read(40)  # the other one writes it
                line.delay = 1.5  # each way
            await reader.finish()
    assert (reader.text, reader.status) == (" ".join(map(str, range(1, 201))), "done")
    assert _column(cluster, "fence", [reader])[0] > 1  # it went to somebody else


@pytest.mark.skipif(not FAKETIME, reason="needs faketime (Debian: apt-get install faketime)")
@pytest.mark.parametrize("skew", ["+5m", "-5m"])
async def test_row_28_a_worker_in_another_time_takes_nothing_from_the_others(
    cluster: Cluster, skew: str
):
    people = [await Person(cluster).arrive() for _ in range(3)]
    with another_worker(cluster, **clock_set(skew)):
        readers = [Reader(person, await person.ask(COUNT)) for _ in range(4) for person in people]
        await asyncio.gather(*(reader.finish() for reader in readers))
        with stopped(cluster.pids_of("worker")):  # and it works itself
            own = Reader(people[0], await people[0].ask("count 3"))
            await own.finish()
    assert {(reader.text, reader.status) for reader in readers} == {(COUNTED, "done")}
    assert own.text == "1 2 3"
    assert set(_column(cluster, "attempts", readers)) == {1}


@pytest.mark.skipif(not FAKETIME, reason="needs faketime (Debian: apt-get install faketime)")
@pytest.mark.parametrize("skew", ["+5m", "-5m"])
async def test_row_28_a_web_process_in_another_time_knows_the_same_people_and_keeps_their_order(
    cluster: Cluster, skew: str, tmp_path: Path
):
    (tmp_path / "sitecustomize.py").write_text(SLEEP)
    person = await Person(cluster).arrive()
    sent = await person.post("/chats/", text="count 1", client_id=str(uuid4()))
    messages = f"/chats/{sent['chat']}/messages/"
    await Reader(person, found_generation(sent)).finish()
    with another_realtime(cluster, PYTHONPATH=str(tmp_path), **clock_set(skew)) as url:
        there = Person(Elsewhere(url))
        there.http.cookies, there.token = person.http.cookies, person.token
        for number, asker in ((2, there), (3, person), (4, there)):
            fields = {"text": f"count {number}", "client_id": str(uuid4())}
            sent = await asker.post(messages, **fields)
            reader = Reader(asker, found_generation(sent))
            await reader.finish()
            assert reader.text == " ".join(map(str, range(1, number + 1)))
    page = (await person.http.get(messages.removesuffix("messages/"))).text
    asked = re.findall(r'message__bubble" dir="auto">count (\d)<', page)
    assert asked == ["1", "2", "3", "4"]


def _column(cluster: Cluster, name: str, readers: list[Reader]) -> list[int]:
    with psycopg.connect(cluster.database_url) as own:
        rows = own.execute(
            f"SELECT {name} FROM inference_generation WHERE id = ANY(%s::uuid[])",
            [[reader.generation for reader in readers]],
        ).fetchall()
    return [value for (value,) in rows]
