"""The worker's loop, on the simulated engine and the test's own database."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.db.models.functions import Now

from accounts.models import User
from inference import doorbell
from inference.database import in_database
from inference.engines.simulated import SimulatedEngine
from inference.models import Generation, Release
from inference.queue import LEASE
from inference.runner import EXIT_WEDGED, Runner
from tests.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


@asynccontextmanager
async def working(engine: SimulatedEngine, release: Release) -> AsyncIterator[Runner]:
    runner = Runner(engine, release, uuid4())
    task = asyncio.create_task(runner.run())
    yield runner
    await runner.drain(0)
    await task


def ask(user: User, release: Release, text: str) -> Generation:
    messages = [{"role": "user", "content": text}]
    return Generation.objects.enqueue(user=user, release=release, messages=messages)


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await in_database(condition):
            await asyncio.sleep(0.01)


async def test_a_run_reclaimed_after_its_own_lease_lapsed_is_driven_once_and_ends(
    alice: User, release: Release
):
    """A laptop that slept: the process lives, its lease does not."""
    async with working(SimulatedEngine(), release) as runner:
        run = await in_database(ask, alice, release, "count 120 pace=60")
        mine = Generation.objects.filter(pk=run.pk)
        await until(lambda: run.log.text().startswith("1 2 3"))
        while (await in_database(mine.get)).fence < 2:  # a renewal may come in between
            await in_database(lambda: mine.filter(fence=1).update(lease_until=Now() - LEASE))
            doorbell.ring("work")
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.3)
        assert [drive.fence for drive in runner._drives.values()] == [2]
        assert len(runner._tasks) == 1
        await until(lambda: mine.get().status == "done")
    assert (await in_database(mine.get)).text == " ".join(str(n) for n in range(1, 121))


async def test_an_unexpected_failure_of_the_engine_ends_the_answer_and_keeps_its_text(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    engine = SimulatedEngine()
    whole = engine.generate

    async def broken(request: object) -> AsyncIterator[object]:
        count = 0
        async for delta in whole(request):  # type: ignore[arg-type]
            yield delta
            count += 1
            if count == 12:
                raise ZeroDivisionError

    monkeypatch.setattr(engine, "generate", broken)
    async with working(engine, release):
        run = await in_database(ask, alice, release, "count 50 pace=200")
        mine = Generation.objects.filter(pk=run.pk)
        await until(lambda: mine.get().status == "failed")
    ended = await in_database(mine.get)
    assert ended.text
    assert ended.error == "The model met an unexpected error."


async def test_an_end_that_the_database_breaks_off_is_one_line_in_the_log(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def break_off(*_: Any, **result: Any) -> None:
        raise OperationalError("terminating connection due to idle-in-transaction timeout\nmore")

    monkeypatch.setattr("inference.tokenlog.DatabaseLog.finish", break_off)
    async with working(SimulatedEngine(), release):
        await in_database(ask, alice, release, "count 2")
        async with asyncio.timeout(20):
            while "broke off" not in caplog.text:
                await asyncio.sleep(0.01)
    assert "idle-in-transaction timeout)" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_stopped_answer_still_says_what_it_cost(alice: User, release: Release):
    async with working(SimulatedEngine(), release):
        run = await in_database(ask, alice, release, "count 500 pace=50")
        mine = Generation.objects.filter(pk=run.pk)
        await until(lambda: run.log.text().startswith("1 2"))
        await in_database(run.cancel)
        await until(lambda: mine.get().status == "stopped")
    ended = await in_database(mine.get)
    assert ended.prompt_tokens > 0
    assert ended.completion_tokens == len(bytes(ended.token_ids)) // 4 > 0


async def test_a_worker_whose_renewals_stay_too_slow_leaves_its_runs_to_others(
    alice: User, release: Release, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inference.runner.RENEW_SECONDS", 0.2)
    run = await in_database(ask, alice, release, "count 100 pace=50")
    mine = Generation.objects.filter(pk=run.pk)
    async with working(SimulatedEngine(), release) as runner:
        await until(lambda: mine.get().log_seq > 3)
        await asyncio.sleep(0.8)
        assert list(runner._drives) == [run.pk]  # quick ones are no reason
        monkeypatch.setattr("inference.runner.SURE_SECONDS", 0.0)
        async with asyncio.timeout(5):
            while runner._drives:
                await asyncio.sleep(0.01)
        await until(lambda: mine.unheld().exists())  # at once, not after the lease
        left = await in_database(mine.get)
        assert (left.attempts, left.fruitless_attempts, left.shared_attempts) == (0, 0, 0)
        await asyncio.sleep(0.6)
        assert await in_database(lambda: mine.get().fence) == left.fence  # nor claimed again
        monkeypatch.setattr("inference.runner.SURE_SECONDS", 8.0)
        await until(lambda: mine.get().status == "done")
    assert (await in_database(mine.get)).text == " ".join(str(n) for n in range(1, 101))


async def test_a_claim_that_came_too_late_to_be_of_use_is_given_back_uncounted(
    alice: User, release: Release, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inference.runner.SURE_SECONDS", 0.0)
    run = await in_database(ask, alice, release, "count 3")
    mine = Generation.objects.filter(pk=run.pk)
    async with working(SimulatedEngine(), release) as runner:
        await until(lambda: mine.get().fence == 2)
        assert not runner._drives
    left = await in_database(mine.get)
    assert (left.attempts, left.fruitless_attempts, left.shared_attempts) == (0, 0, 0)
    assert await in_database(mine.unheld().exists)


async def test_after_one_late_claim_a_few_quick_renewals_are_enough(
    alice: User, release: Release, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    claim, slow = Generation.objects.claim, [1.2]
    monkeypatch.setattr("inference.runner.SURE_SECONDS", 1.0)
    monkeypatch.setattr("inference.runner.RENEW_SECONDS", 1.0)

    def claimed(*args: Any) -> list[Generation]:
        found = claim(*args)
        if found and slow:
            time.sleep(slow.pop())
        return found

    monkeypatch.setattr(Generation.objects, "claim", claimed)
    run = await in_database(ask, alice, release, "count 3")
    mine = Generation.objects.filter(pk=run.pk)
    async with working(SimulatedEngine(), release):
        await until(lambda: mine.get().status == "done", 8)  # and not twelve, which take longer
    assert not slow


async def test_one_run_that_cannot_be_given_back_keeps_no_other(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    give_back = Generation.objects.give_back
    runs = [await in_database(ask, alice, release, "count 3") for _ in range(3)]
    fences = {run.pk: 0 for run in runs}
    back: list[Any] = []

    def fails_once(pk: Any, fence: int) -> bool:
        back.append(pk)
        if len(back) == 1:
            raise OperationalError("lock timeout")
        return bool(give_back(pk, fence))

    monkeypatch.setattr(Generation.objects, "give_back", fails_once)
    await Runner(SimulatedEngine(), release, uuid4())._give_back(fences)
    assert back == [run.pk for run in runs]


async def test_what_is_claimed_while_the_worker_is_told_to_end_is_given_back(
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    claim = Generation.objects.claim
    claimed, told = threading.Event(), threading.Event()

    def slow(*args: Any) -> list[Generation]:
        found = claim(*args)
        if found:
            claimed.set()
            told.wait(5)
        return found

    monkeypatch.setattr(Generation.objects, "claim", slow)
    run = await in_database(ask, alice, release, "count 3")
    async with working(SimulatedEngine(), release) as runner:
        await asyncio.to_thread(claimed.wait, 5)
        runner._draining = True
        told.set()
    left = await in_database(Generation.objects.get, pk=run.pk)
    assert (left.status, left.fence, left.attempts) == ("running", 2, 0)
    assert await in_database(Generation.objects.filter(pk=run.pk).unheld().exists)


async def test_a_wedged_engine_ends_its_process_and_one_that_was_stopped_with_it_does_not(
    release: Release, monkeypatch: pytest.MonkeyPatch
):
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr("inference.runner.WATCH_SECONDS", 0.2)
    engine, moved_at = SimulatedEngine(), time.monotonic()
    monkeypatch.setattr(engine, "seconds_without_progress", lambda: time.monotonic() - moved_at)
    monkeypatch.setattr(engine, "most_seconds_without_progress", lambda: 0.8)
    async with working(engine, release):
        await asyncio.sleep(0.1)
        time.sleep(1.5)  # noqa: ASYNC251 - as if the process had been stopped
        await asyncio.sleep(0.6)  # a step that takes longer than from one look to the next
        moved_at = time.monotonic()
        await asyncio.sleep(0.5)
        assert ends == []
        async with asyncio.timeout(5):
            while not ends:
                await asyncio.sleep(0.05)
    assert set(ends) == {EXIT_WEDGED}
