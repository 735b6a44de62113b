"""Questions of many tasks that are asked together."""

import asyncio
from uuid import uuid4

import pytest

from accounts.models import User
from inference import redis_server
from inference.batch import Batch, run_script
from inference.database import in_database
from inference.live_scripts import READ
from inference.models import Generation, Release
from inference.tokenlog import Fenced
from tests.inference.test_live_log import claimed


class Asked:
    """Notes the questions of each round, and answers with their double once it may."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.may = asyncio.Event()

    async def __call__(self, questions: list[int]) -> list[int]:
        self.rounds.append(questions)
        await self.may.wait()
        if 13 in questions:
            raise OSError("13 is not to be asked")
        return [2 * question for question in questions]


async def test_what_is_asked_in_one_turn_goes_together_and_the_rest_with_the_next():
    asked = Asked()
    batch = Batch(asked)
    first = [asyncio.create_task(batch.ask(n)) for n in (1, 2)]
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(batch.ask(n)) for n in (3, 4, 5)]
    await asyncio.sleep(0.01)
    asked.may.set()
    assert await asyncio.gather(*first, *later) == [2, 4, 6, 8, 10]
    assert asked.rounds == [[1, 2], [3, 4, 5]]


async def test_a_failure_is_told_to_all_of_its_round_and_to_nobody_else():
    asked = Asked()
    batch = Batch(asked)
    together = [asyncio.create_task(batch.ask(n)) for n in (1, 13)]
    await asyncio.sleep(0.01)
    alone = asyncio.create_task(batch.ask(2))
    asked.may.set()
    failed = await asyncio.gather(*together, return_exceptions=True)
    assert [str(error) for error in failed] == ["13 is not to be asked"] * 2
    assert failed[0] is not failed[1]
    assert await alone == 4


async def test_who_gave_up_is_not_asked_for_and_harms_nobody():
    asked = Asked()
    batch = Batch(asked)
    tasks = [asyncio.create_task(batch.ask(n)) for n in (1, 2)]
    await asyncio.sleep(0.01)
    more = [asyncio.create_task(batch.ask(n)) for n in (3, 4)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    more[0].cancel()
    asked.may.set()
    answers = await asyncio.gather(*tasks, *more, return_exceptions=True)
    assert [answers[1], answers[3]] == [4, 8]
    assert asked.rounds == [[1, 2], [4]]


@pytest.mark.usefixtures("valkey")
async def test_scripts_are_run_together_also_when_the_server_forgot_them():
    redis_server.server().client.script_flush()
    keys = [redis_server.name("log", f"{{{uuid4()}}}") for _ in range(3)]
    assert await asyncio.gather(*(run_script(READ, key, 0, 0, 9) for key in keys)) == [None] * 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey")
async def test_events_that_many_logs_get_at_once_are_all_there_once_and_in_order(
    alice: User, release: Release
):
    runs = [await in_database(claimed, alice, release) for _ in range(5)]
    logs = [run.log for run in runs]
    for run, log in zip(runs, logs, strict=True):
        await in_database(log.begin, run)
    for seq in range(1, 20):
        appends = [log.aappend(1, seq, f"{n}.{seq} ", [seq]) for n, log in enumerate(logs)]
        assert await asyncio.gather(*appends) == [False] * 5
    for n, run in enumerate(runs):
        news = await run.log.news(0, 0)
        assert news is not None
        assert [event.text for event in news] == [f"{n}.{seq} " for seq in range(1, 20)]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey")
async def test_a_log_that_is_another_writers_refuses_its_own_event_and_no_other(
    alice: User, release: Release
):
    mine, lost = [await in_database(claimed, alice, release) for _ in range(2)]
    logs = [mine.log, lost.log]
    for run, log in zip((mine, lost), logs, strict=True):
        await in_database(log.begin, run)
    await in_database(Generation.objects.filter(pk=lost.pk).update, fence=2)
    await in_database(lost.log.adopt, 2)
    appends = [log.aappend(1, 1, "a", [1]) for log in logs]
    answers = await asyncio.gather(*appends, return_exceptions=True)
    assert answers[0] is False
    assert isinstance(answers[1], Fenced)


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("valkey")
async def test_news_are_only_told_of_the_epoch_and_the_part_that_is_in_redis(
    alice: User, release: Release
):
    run = await in_database(claimed, alice, release)
    assert await run.log.news(0, 0) is None  # nobody has written
    log = run.log
    await in_database(log.begin, run)
    assert await log.aappend(1, 1, "a", [1]) is False
    assert await run.log.news(0, 1) == []
    assert await run.log.news(1, 0) is None
    await in_database(log.save, 1)
    await in_database(redis_server.server().client.flushall)
    assert await log.aappend(1, 2, "b", [2]) is False  # made anew, from what is not saved
    assert await run.log.news(0, 0) is None
    news = await run.log.news(0, 1)
    assert news
    assert [event.text for event in news] == ["b"]
