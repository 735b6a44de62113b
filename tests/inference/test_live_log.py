"""The live log beside a real Valkey: what goes where, and when."""

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import DatabaseError
from redis import Redis

from accounts.models import User
from inference import redis_server, saving
from inference.database import in_database
from inference.drive import Drive
from inference.engines.simulated import SimulatedEngine
from inference.live_log import KEPT_MILLISECONDS, LiveLog
from inference.models import Chunk, Generation, Release
from inference.saving import Entry, Unsaved, save
from inference.tokenlog import DatabaseLog, Fenced, Tail, pack
from tests.inference.test_runner import ask, until, working
from tests.valkey import Valkey

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]


def claimed(user: User, release: Release, text: str = "Hi") -> Generation:
    messages = [{"role": "user", "content": text}]
    Generation.objects.enqueue(user=user, release=release, messages=messages)
    [run] = Generation.objects.claim(release, uuid4(), 1)
    return run


def live(run: Generation) -> LiveLog:
    assert isinstance(run.log, LiveLog)
    return run.log


def head(run: Generation) -> Any:
    return redis_server.server().client.hgetall(redis_server.name("log", f"{{{run.pk}}}"))


def rows(run: Generation) -> list[str]:
    chunks = Chunk.objects.filter(generation=run.pk).order_by("seq")
    return list(chunks.values_list("text", flat=True))


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`away(True)`: Redis does not answer from now on."""
    real = redis_server.server()
    is_away = False

    def call(command: Any) -> Any:
        if is_away:
            raise redis_server.Away
        return redis_server.Server.call(real, command)

    def set_away(value: bool) -> None:
        nonlocal is_away
        is_away = real._away = value

    monkeypatch.setattr(real, "call", call)
    return set_away


def test_a_site_without_redis_keeps_its_log_in_the_database(
    alice: User, release: Release, settings: Any
):
    settings.REDIS_URL = ""
    assert type(claimed(alice, release).log) is DatabaseLog


def test_an_event_is_in_redis_at_once_and_in_the_database_when_it_is_saved(
    alice: User, release: Release
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    assert (head(run)[b"seq"], rows(run)) == (b"1", [])
    run.log.save(run.fence)
    assert rows(run) == ["a"]
    run.refresh_from_db()
    assert (run.log_seq, run.log_characters) == (1, 1)
    assert run.first_token_at


def test_the_streams_of_a_worker_are_saved_together_in_a_handful_of_statements(
    alice: User, release: Release, django_assert_max_num_queries: Any
):
    runs = [claimed(alice, release) for _ in range(5)]
    for run in runs:
        run.log.begin(run)
        for seq in range(1, 4):
            run.log.append(run.fence, seq, "x", [seq])
    rests = [rest for run in runs if (rest := live(run).unsaved())]
    with django_assert_max_num_queries(5):  # begin, lock, update, insert, commit
        assert save(rests) == {run.pk for run in runs}
    assert Chunk.objects.count() == 15


def test_saving_twice_writes_once(alice: User, release: Release):
    run = claimed(alice, release)
    rest = Unsaved(run.pk, run.fence, 0, (Entry(1, 0, "a", pack([1])),), None)
    assert save([rest]) == save([rest]) == {run.pk}
    assert rows(run) == ["a"]


def test_one_stream_that_was_taken_over_does_not_keep_the_others_from_being_saved(
    alice: User, release: Release
):
    lost, kept = claimed(alice, release), claimed(alice, release)
    Generation.objects.filter(pk=lost.pk).update(fence=2)
    entry = (Entry(1, 0, "a", pack([1])),)
    assert save([Unsaved(run.pk, 1, 0, entry, None) for run in (lost, kept)]) == {kept.pk}
    assert (rows(lost), rows(kept)) == ([], ["a"])


def test_what_belongs_to_an_epoch_that_is_over_is_not_saved(alice: User, release: Release):
    run = claimed(alice, release)
    Generation.objects.filter(pk=run.pk).update(epoch=1)
    assert save([Unsaved(run.pk, 1, 0, (Entry(1, 0, "a", b""),), None)]) == {run.pk}
    assert rows(run) == []


def test_what_redis_has_not_heard_of_is_not_saved_before_it(alice: User, release: Release):
    """Else a kill in between would leave more in the database than anybody was shown."""
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1], prompt=(3, "hash"))
    live(run)._add(live(run)._written_by(run.fence), 2, "b", [2], None)  # and no APPEND yet
    rest = live(run).unsaved()
    assert rest
    assert [entry.text for entry in rest.entries] == ["a"]
    save([rest])
    assert run.boot_id
    Generation.objects.void_leases(run.boot_id)
    [again] = Generation.objects.claim(release, uuid4(), 1)
    assert again.log.adopt(again.fence) == Tail(0, 1, "a", (1,))


@pytest.mark.parametrize("way", ["in one statement", "step by step"])
def test_a_save_that_fails_loses_nothing(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch, way: str
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])

    def fail(*_: object) -> None:
        raise DatabaseError

    with monkeypatch.context() as patch:
        patch.setattr(saving, "_go_on", fail if way == "in one statement" else nothing)
        patch.setattr(saving, "_insert", fail)
        with pytest.raises(DatabaseError):
            run.log.save(run.fence)
    run.log.save(run.fence)
    assert rows(run) == ["a"]


def nothing(logs: object) -> set[UUID]:
    """No statement for all of it."""
    return set()


@pytest.mark.parametrize("way", ["in one statement", "step by step"])
def test_events_of_several_are_saved_with_the_heads_and_prompts_of_those_that_are_current(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch, way: str
):
    if way == "step by step":
        monkeypatch.setattr(saving, "_go_on", nothing)
    first, second, fenced, over, ended = (claimed(alice, release) for _ in range(5))
    old = Entry(1, 0, "ä", b"\1\0\0\0")
    assert save([Unsaved(second.pk, 1, 0, (old,), None)]) == {second.pk}
    Generation.objects.filter(pk=fenced.pk).update(fence=2)
    Generation.objects.filter(pk=over.pk).update(epoch=1)
    Generation.objects.filter(pk=ended.pk).update(status="done")
    new = Entry(2, 1, "b\n", b"")
    pictures = [
        Unsaved(first.pk, 1, 0, (old, new), (7, "f" * 64)),
        Unsaved(second.pk, 1, 0, (old, new), None),  # a part of it is there already
        *(Unsaved(run.pk, 1, 0, (old,), (9, "9" * 64)) for run in (fenced, over, ended)),
    ]
    for _ in range(2):  # and again, because nobody heard the answer
        assert save(pictures) == {first.pk, second.pk, over.pk}
        for run in (first, second):
            assert rows(run) == ["ä", "b\n"]
            run.refresh_from_db()
            assert (run.log_seq, run.log_characters) == (2, 3)
            assert run.first_token_at
        for run in (fenced, over, ended):
            assert rows(run) == []
    assert [run.prompt.sha256[:1] for run in (first, second, fenced, ended)] == ["f", "", "", ""]


def test_the_first_event_wants_to_be_saved_at_once_and_then_64_tokens_or_4_kib(
    alice: User, release: Release
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    assert run.log.wants_saving()
    run.log.save(run.fence)
    run.log.append(run.fence, 2, "b", range(63))
    assert not run.log.wants_saving()
    run.log.append(run.fence, 3, "c", [1])
    assert run.log.wants_saving()
    run.log.save(run.fence)
    run.log.append(run.fence, 4, "x" * 5000, [1])
    assert run.log.wants_saving()


def test_while_redis_is_away_events_stay_in_memory_and_readers_get_what_is_saved(
    alice: User, release: Release, away: Any
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    away(True)
    run.log.append(run.fence, 2, "b", [2])
    assert run.log.text() == ""
    run.log.save(run.fence)
    assert run.log.text() == "ab"
    away(False)
    run.log.append(run.fence, 3, "c", [3])
    assert (head(run)[b"base"], head(run)[b"seq"], run.log.text()) == (b"2", b"3", "abc")
    assert run.epoch == 0


def test_no_reader_waits_to_find_out_whether_a_frozen_redis_is_back(
    alice: User, release: Release, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_server, "TRY_AGAIN_SECONDS", 0.0)
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    run.log.save(run.fence)
    valkey.freeze()
    try:
        assert run.log.text() == "a"  # finds out, in a second
        started = time.monotonic()
        assert [run.log.text() for _ in range(3)] == ["a"] * 3
        assert time.monotonic() - started < 0.9  # generous: one wait would be a second
    finally:
        valkey.thaw()


def test_a_reader_in_the_middle_gets_the_saved_part_and_then_the_newest(
    alice: User, release: Release
):
    run = claimed(alice, release)
    run.log.begin(run)
    for seq in range(1, 5):
        run.log.append(run.fence, seq, str(seq), [seq])
    run.log.save(run.fence)
    redis_server.server().client.flushall()
    run.log.append(run.fence, 5, "5", [5])  # made anew out of memory: only what is not saved
    assert [event.seq for event in run.log.read(0, 2)] == [3, 4, 5]
    assert [event.offset for event in run.log.read(0, 4)] == [4]


def test_an_ended_log_leaves_nothing_in_redis(alice: User, release: Release):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    run.log.finish(run.fence, 2, "done", text="a", token_ids=pack([1]), finish_reason="end")
    assert redis_server.server().client.keys("chatsite:log:*") == []
    assert [event.kind for event in run.log.read(0, 0)] == ["delta", "done"]


def test_a_log_that_nobody_ends_expires(alice: User, release: Release):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    redis = redis_server.server().client
    keys = list(redis.scan_iter("chatsite:log:*"))
    assert len(keys) == 2
    assert {0 < redis.pttl(key) <= KEPT_MILLISECONDS for key in keys} == {True}


def test_a_stop_is_told_with_the_next_append_without_asking_the_database(
    alice: User, release: Release, django_assert_num_queries: Any
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.cancel()
    with django_assert_num_queries(0):
        assert run.log.append(run.fence, 1, "a", [1])


def test_an_append_asks_the_database_nothing(
    alice: User, release: Release, django_assert_num_queries: Any
):
    run = claimed(alice, release)
    with django_assert_num_queries(0):
        run.log.begin(run)
        for seq in range(1, 20):
            run.log.append(run.fence, seq, "a", [seq])


def test_a_run_whose_worker_is_gone_ends_with_what_redis_has_of_it(alice: User, release: Release):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "shown", [1, 2])
    assert run.boot_id
    Generation.objects.void_leases(run.boot_id)
    assert Generation.objects.get(pk=run.pk).cancel().text == "shown"
    with pytest.raises(Fenced):
        run.log.append(run.fence, 2, "zombie", [3])


def test_with_redis_away_a_run_without_a_worker_is_not_ended_short(
    alice: User, release: Release, away: Any
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "shown", [1, 2])
    assert run.boot_id
    Generation.objects.void_leases(run.boot_id)
    away(True)
    assert Generation.objects.get(pk=run.pk).cancel().status == "running"
    away(False)
    Generation.objects.get(pk=run.pk).cancel()
    assert Generation.objects.get(pk=run.pk).text == "shown"


def test_two_sites_on_one_redis_do_not_meet(alice: User, release: Release, settings: Any):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    settings.REDIS_PREFIX = "another"
    assert Generation(pk=run.pk).log.text() == ""


async def test_a_worker_saves_each_second_and_at_the_end(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inference.runner.SAVE_SECONDS", 0.1)
    async with working(SimulatedEngine(), release):
        run = await in_database(ask, alice, release, "count 200 pace=90")
        await until(lambda: len(rows(run)) > 3)
        assert (await in_database(Generation.objects.get, pk=run.pk)).status == "running"
        await until(lambda: not Generation.objects.get(pk=run.pk).is_active)
    ended = await in_database(Generation.objects.get, pk=run.pk)
    assert ended.text == "".join(await in_database(rows, run))
    assert await in_database(lambda: ended.prompt.sha256)


async def test_a_worker_that_is_not_sure_of_its_lease_writes_nothing(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inference.drive.SURE_SECONDS", 0.2)
    run = await in_database(claimed, alice, release, "count 50 pace=100")
    engine = SimulatedEngine()
    drive = Drive(engine, run, time.monotonic())
    driving = asyncio.create_task(drive.run())
    await asyncio.sleep(0.6)
    before = await in_database(run.log.text)
    await asyncio.sleep(0.3)
    assert await in_database(run.log.text) == before
    drive.renewed(time.monotonic() + 60)
    await driving
    ended = await in_database(Generation.objects.get, pk=run.pk)
    assert ended.text == " ".join(str(number) for number in range(1, 51))


def test_the_scripts_are_known_again_after_the_server_forgot_them(
    alice: User, release: Release, valkey: Valkey
):
    run = claimed(alice, release)
    run.log.begin(run)
    Redis.from_url(valkey.url).script_flush()
    run.log.append(run.fence, 1, "a", [1])
    assert run.log.text() == "a"


def test_after_a_restart_of_redis_nobody_knows_what_readers_saw_so_they_are_sent_back(
    alice: User, release: Release, valkey: Valkey
):
    run = claimed(alice, release)
    run.log.begin(run)
    run.log.append(run.fence, 1, "a", [1])
    run.log.save(run.fence)
    copies = {key: valkey.client.dump(key) for key in valkey.client.scan_iter()}
    run.log.append(run.fence, 2, "b", [2])  # seen, and then forgotten with the last second
    valkey.empty()
    for key, value in copies.items():
        valkey.client.restore(key, 0, value)  # type: ignore[arg-type]
    valkey.client.hset(redis_server.name("log", f"{{{run.pk}}}"), "run", "an earlier start")
    assert run.boot_id
    Generation.objects.void_leases(run.boot_id)
    [again] = Generation.objects.claim(release, uuid4(), 1)
    tail = again.log.begin(again)
    assert (tail.epoch, tail.seq, tail.text) == (1, 1, "a")
    assert [(event.epoch, event.text) for event in again.log.read(0, 2)] == [(1, "a")]
