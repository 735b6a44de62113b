"""`make cluster` as people and operators use it: kill what you like, and the answer goes on."""

import asyncio
import json
import math
import signal
import time
from uuid import uuid4

import httpx
import psycopg
import pytest
from redis import Redis

from bench.cluster import Cluster
from bench.faults import postgres_stopped
from bench.reader import Reader
from bench.scale import allow_many_files, quantile
from bench.site import Person, watch
from tests.chatsite.test_serve import COUNT, COUNTED, is_running
from tests.cluster.conftest import begin, needs_nginx
from tests.cluster.crowd import Crowd
from tests.faults.workers import ALL

pytestmark = needs_nginx


async def test_a_question_is_answered_through_nginx_and_every_role(cluster: Cluster):
    reader = await begin(cluster)
    await reader.finish()
    assert (reader.text, reader.status) == (COUNTED, "done")
    assert {role: len(cluster.pids_of(role)) for role in ("pages", "realtime", "worker")} == {
        "pages": 2, "realtime": 2, "worker": 2,
    }  # fmt: skip


async def test_row_1_a_killed_worker_loses_nothing_and_the_same_socket_goes_on(cluster: Cluster):
    person = await Person(cluster).arrive()
    reader = Reader(person, await person.ask(COUNT))
    async with person.socket() as socket:
        is_killed = False
        async for frame in watch(socket, reader.generation):
            reader.take(frame)
            if len(reader.text) > 60 and not is_killed:
                is_killed = True
                for pid in cluster.pids_of("worker"):  # whichever has it
                    cluster.kill(pid)
    assert (reader.text, reader.status, reader.resets) == (COUNTED, "done", 0)
    assert reader.longest_pause < 15  # generous: both workers are started anew


async def test_row_10_everybody_at_a_killed_realtime_process_goes_on_at_the_other(
    cluster: Cluster,
):
    """Many pages with one answer: half of them were there."""
    allow_many_files()
    many, count, pace = (500, 60, 5) if ALL else (60, 250, 60)  # what this process can read
    first = await begin(cluster, f"count {count} pace={pace}", until=1)
    readers = [Reader(first.person, first.generation) for _ in range(many)]
    reading = asyncio.gather(*(reader.finish() for reader in readers))
    while not all(reader.text for reader in readers):
        await asyncio.sleep(0.1)
    for pid in cluster.pids_of("realtime")[:1]:
        cluster.kill(pid)
    await reading
    text = " ".join(map(str, range(1, count + 1)))
    assert {(reader.text, reader.status, reader.resets) for reader in readers} == {
        (text, "done", 0)
    }
    assert quantile([reader.longest_pause for reader in readers], 0.95) <= 6
    cluster.wait_until_up("realtime", 2)


async def test_sends_do_not_notice_a_killed_pages_process(cluster: Cluster):
    person = await Person(cluster).arrive()
    cluster.kill(cluster.pids_of("pages")[0])
    for _ in range(6):
        reader = Reader(person, await person.ask("count 3"))
        await reader.finish()
        assert reader.text == "1 2 3"


async def test_row_14_a_killed_redis_is_done_without_until_it_is_back(cluster: Cluster):
    reader = await begin(cluster)
    cluster.kill(cluster.pids_of("valkey")[0])
    await reader.finish()
    assert (reader.text, reader.status) == (COUNTED, "done")
    cluster.wait_until_up("valkey", 1)


async def test_row_18_with_every_wake_up_line_cut_again_and_again_a_second_is_lost_at_most(
    cluster: Cluster,
):
    valkey = Redis(unix_socket_path=str(cluster.folder / "valkey" / "valkey.sock"))
    person = await Person(cluster).arrive()
    cuts = pauses = 0
    text, longest, heard_at = "", 0.0, math.inf
    async with person.socket() as socket:
        async for frame in watch(socket, await person.ask("count 200 pace=80")):
            longest, heard_at = max(longest, time.monotonic() - heard_at), time.monotonic()
            text += frame.get("text", "")
            if len(text) // 100 > pauses:  # about every third of a second
                pauses += 1
                cuts += valkey.client_kill_filter(_type="pubsub")
    assert text == " ".join(map(str, range(1, 201)))
    assert cuts > 5
    assert longest < (1.5 if ALL else 2.5)  # generous: one second


@pytest.mark.skipif(not ALL, reason="takes more than a minute: make faults")
async def test_row_21_after_65_idle_seconds_a_send_and_a_stop_work_at_once(cluster: Cluster):
    person = await Person(cluster).arrive()
    async with person.socket() as socket:
        await asyncio.sleep(65)
        generation = await person.ask("count 2000 pace=100")
        frames = watch(socket, generation)
        async with asyncio.timeout(5):
            while (await anext(frames))["type"] != "delta":
                pass
        await person.stop(generation)
        async with asyncio.timeout(5):
            while (await anext(frames))["type"] != "end":
                pass


async def test_row_40_without_celery_a_run_starts_all_the_same(cluster: Cluster):
    cluster.kill(cluster.pids_of("beat")[0])
    person = await Person(cluster).arrive()
    cluster.kill(cluster.pids_of("valkey")[0])  # and every message with it
    started = time.monotonic()
    reader = Reader(person, await person.ask("count 3"))
    await reader.finish()
    assert reader.text == "1 2 3"
    assert time.monotonic() - started < (3 if ALL else 10)  # generous beside other tests
    cluster.wait_until_up("valkey", 1)
    cluster.wait_until_up("beat", 1)


async def test_an_answer_is_read_and_stopped_on_another_replica(cluster: Cluster):
    reader = await begin(cluster, "count 2000 pace=100")
    for replica in cluster.replicas:
        elsewhere = Reader(reader.person, reader.generation)
        await elsewhere.read(len(reader.text) + 100, replica)
        assert elsewhere.text.startswith(reader.text)
    await reader.person.stop(reader.generation)
    stopped_at = time.monotonic()
    await reader.finish()
    assert reader.status == "stopped"
    assert time.monotonic() - stopped_at < 5  # generous


THEIRS = "(SELECT user_id FROM inference_generation WHERE id = %(run)s)"
ENDINGS = {  # as another process does them
    "disabled": f"UPDATE accounts_user SET is_active = false WHERE id = {THEIRS}",
    "another password": f"UPDATE accounts_user SET password = 'another' WHERE id = {THEIRS}",
    "expired": "UPDATE django_session SET expire_date = now() WHERE session_key = ANY(%(keys)s)",
}


async def log_out(person: Person) -> None:
    form = {"csrfmiddlewaretoken": person.token}
    await person.http.post("/accounts/logout/", data=form, headers={"Origin": person.site.url})


@pytest.mark.parametrize("ending", ["a log-out", *ENDINGS])
async def test_the_end_of_a_session_closes_its_sockets_at_every_replica(
    cluster: Cluster, ending: str
):
    reader = await begin(cluster, "count 100 pace=20")
    person = reader.person
    one, other = cluster.replicas
    async with person.socket(one) as here, person.socket(other) as there:
        if ending == "a log-out":
            await log_out(person)
        else:
            keys = list(person.http.cookies.values())
            with psycopg.connect(cluster.database_url) as own:
                own.execute(ENDINGS[ending], {"run": reader.generation, "keys": keys})
        async with asyncio.timeout(5 if ALL else 10):  # generous beside other tests
            await asyncio.gather(here.wait_closed(), there.wait_closed())
        assert (here.close_code, there.close_code) == (4401, 4401)


async def test_row_11_a_rolling_restart_under_load_fails_nothing(cluster: Cluster):
    crowd = Crowd()
    people = [await Person(cluster).arrive() for _ in range(5)]
    asking = [asyncio.create_task(crowd.keep_reading(person)) for person in people[:4]]
    asking += [asyncio.create_task(crowd.keep_visiting(people[4]))]
    for role in ("pages", "realtime", "worker", "beat"):
        replicas = cluster.pids_of(role)
        for pid in replicas:
            cluster.kill(pid, signal.SIGTERM)
            await asyncio.sleep(10 if ALL else 4)
            await asyncio.to_thread(cluster.wait_until_up, role, len(replicas))
    crowd.has_to_end = True
    await asyncio.gather(*asking)
    assert crowd.failed == []
    assert crowd.read > 8
    assert crowd.visits > 50


async def test_row_23_an_open_answer_outlives_a_restart_of_postgresql(cluster: Cluster):
    reader = await begin(cluster, "count 200 pace=100")
    cluster.restart_postgres()
    await reader.finish()
    assert reader.status == "done"
    assert reader.text == " ".join(map(str, range(1, 201)))
    again = Reader(reader.person, await reader.person.ask("count 3"))
    await again.finish()
    assert again.text == "1 2 3"


async def test_row_23_while_postgresql_is_down_sends_hear_when_to_come_back_and_are_taken_once(
    cluster: Cluster,
):
    person = await Person(cluster).arrive()
    fields = {"csrfmiddlewaretoken": person.token, "text": "count 3", "client_id": str(uuid4())}
    headers = {"Accept": "application/json", "Origin": cluster.url}

    async def send() -> httpx.Response:
        return await person.http.post("/chats/", data=fields, headers=headers)

    with postgres_stopped(cluster):
        refused = [await send() for _ in range(3)]
    assert [answer.status_code for answer in refused] == [503] * 3
    assert {answer.headers["Retry-After"] for answer in refused} == {"5"}
    assert {answer.json()["error"]["code"] for answer in refused} == {"away"}
    taken = [await send() for _ in range(4)]
    assert {answer.status_code for answer in taken} == {200}, cluster.log[-3000:]
    assert len({answer.json()["chat"] for answer in taken}) == 1


async def test_row_23_open_pages_are_told_that_the_database_is_away_and_that_it_is_back(
    cluster: Cluster,
):
    person = await Person(cluster).arrive()
    await person.ask("count 1")  # a page without an account has no socket
    async with person.socket() as socket, asyncio.timeout(60):

        async def wait_for(frame: dict[str, object]) -> None:
            while json.loads(await socket.recv()) != frame:
                pass

        await wait_for({"type": "hello", "protocol": 1})  # it knows who they are
        with postgres_stopped(cluster):
            await wait_for({"type": "pong", "away": True})
        await wait_for({"type": "pong"})


async def test_limits_are_counted_for_all_replicas_together(cluster: Cluster):
    async with httpx.AsyncClient(base_url=cluster.url) as client:
        page = (await client.get("/accounts/login/")).text
        token = page.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
        guess = {"csrfmiddlewaretoken": token, "username": "nobody", "password": "guess"}
        origin = {"Origin": cluster.url}
        statuses = [
            (await client.post("/accounts/login/", data=guess, headers=origin)).status_code
            for _ in range(6)
        ]
    assert statuses == [200] * 5 + [429], cluster.log[-3000:]


def test_a_second_start_in_the_same_folder_is_refused(cluster: Cluster):
    second = Cluster(cluster.folder)
    with pytest.raises(AssertionError, match="running in"):
        second.start(10)


ROLES = ("pages", "realtime", "worker", "beat", "valkey", "nginx")


def test_a_killed_supervisor_takes_everything_with_it_and_a_new_start_goes_on(cluster: Cluster):
    pids = [pid for role in ROLES for pid in cluster.pids_of(role)]
    assert cluster.process
    cluster.process.kill()
    cluster.process.wait(10)
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "something was left running"
        time.sleep(0.1)
    cluster.start()


@pytest.mark.skipif(not ALL, reason="takes long: make faults")
async def test_a_second_ctrl_c_does_not_wait_for_answers(cluster: Cluster):
    assert cluster.stop() == 0
    cluster.environment["DRAIN_SECONDS"] = "60"
    cluster.start()
    reader = await begin(cluster, "count 250 pace=20")
    assert cluster.process
    cluster.process.send_signal(signal.SIGINT)
    await asyncio.sleep(4)
    assert cluster.process.poll() is None
    told_at = time.monotonic()
    assert await asyncio.to_thread(cluster.stop) == 0
    assert time.monotonic() - told_at < 20  # generous: the answer would take forty
    cluster.environment["DRAIN_SECONDS"] = "3"
    cluster.start()
    text = reader.text
    await reader.read(len(text) + 100)  # and it goes on where it was
    assert reader.text.startswith(text)
    await reader.person.stop(reader.generation)


async def test_ctrl_c_lets_people_see_what_is_still_written_and_ends_everything(
    cluster: Cluster,
):
    pids = [pid for role in ROLES for pid in cluster.pids_of(role)]
    assert len(pids) == 9
    reader = await begin(cluster, "count 100 pace=300", until=1)
    stopping = asyncio.create_task(asyncio.to_thread(cluster.stop))
    await reader.read()  # on one socket
    assert (reader.text, reader.status) == (" ".join(map(str, range(1, 101))), "done")
    assert await stopping == 0
    assert not any(map(is_running, pids))
    assert "Stopped." in cluster.log
