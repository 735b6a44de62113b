"""The worker's loop, on the simulated engine and the test's own database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from django.db.models.functions import Now

from accounts.models import User
from inference import doorbell
from inference.database import in_database
from inference.engines.simulated import SimulatedEngine
from inference.models import Generation, Release
from inference.queue import LEASE
from inference.runner import Runner

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
    alice: User, release: Release, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inference.runner.RENEW_SECONDS", 0.2)
    run = await in_database(ask, alice, release, "count 300 pace=50")
    mine = Generation.objects.filter(pk=run.pk)
    async with working(SimulatedEngine(), release) as runner:
        await until(lambda: mine.get().log_seq > 3)
        await asyncio.sleep(0.8)
        assert list(runner._drives) == [run.pk]  # quick ones are no reason
        monkeypatch.setattr("inference.runner.SURE_SECONDS", 0.0)
        async with asyncio.timeout(5):
            while runner._drives:
                await asyncio.sleep(0.01)
        before = await in_database(mine.get)
        await asyncio.sleep(0.6)
        after = await in_database(mine.get)
    assert before.status == after.status == "running"
    assert (before.log_seq, before.lease_until) == (after.log_seq, after.lease_until)
