"""Workers that take only what somebody waits for, or only what can wait."""

import asyncio
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from accounts.models import User
from inference import wakeups
from inference.database import in_database
from inference.engines.simulated import SimulatedEngine
from inference.management.commands.worker import queues
from inference.models import Generation, Release
from inference.runner import ENDS_AT_ONCE, Runner
from tests.inference.test_runner import until
from tests.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


def enqueue(user: User, release: Release, priority: int) -> Generation:
    return Generation.objects.enqueue(user=user, release=release, messages=[], priority=priority)


def claim(release: Release, *lanes: str) -> list[int]:
    return [r.priority for r in Generation.objects.claim(release, uuid4(), 10, True, lanes)]


def test_a_worker_of_a_lane_takes_what_is_in_it_and_leaves_the_rest(alice: User, release: Release):
    for priority in (60, 10, 49, 50):
        enqueue(alice, release, priority)
    assert claim(release, "background") == [50, 60]
    assert claim(release, "interactive") == [10, 49]


def test_without_lanes_a_worker_takes_everything_in_order(alice: User, release: Release):
    for priority in (60, 10):
        enqueue(alice, release, priority)
    assert [r.priority for r in Generation.objects.claim(release, uuid4(), 10)] == [10, 60]


def test_a_run_left_behind_waits_for_a_worker_of_its_lane(alice: User, release: Release):
    enqueue(alice, release, 60)
    boot_id = uuid4()
    Generation.objects.claim(release, boot_id, 1)
    Generation.objects.void_leases(boot_id)
    assert claim(release, "interactive") == []
    assert claim(release, "background") == [60]


def test_each_lane_has_a_queue_of_messages(alice: User, release: Release, valkey: Valkey):
    for priority in (10, 60, 61):
        enqueue(alice, release, priority)
    keys = [key.decode() for key in valkey.client.scan_iter(_type="list")]
    waiting = {key.rpartition(".")[2]: valkey.client.llen(key) for key in keys}
    assert waiting == {"interactive": 1, "background": 2}
    assert wakeups.queues_of(release, ["background"])[0].endswith(".background")


def test_an_unknown_lane_is_named_with_those_there_are():
    with pytest.raises(CommandError, match=r"no lane .fast.\. Known: interactive, background"):
        call_command("worker", "--lanes", "fast")


@pytest.mark.parametrize(
    ("named", "understood"),
    [
        ("small", ("small", ("interactive", "background"))),
        ("small@2.background", ("small@2", ("background",))),
        ("small.interactive,small.background", ("small", ("interactive", "background"))),
        ("qwen2.5-1.5b.interactive", ("qwen2.5-1.5b", ("interactive",))),
    ],
)
def test_a_queue_names_a_model_and_a_lane(named: str, understood: tuple[str, tuple[str, ...]]):
    assert queues(named) == understood


def test_queues_of_two_models_are_for_two_workers():
    with pytest.raises(CommandError, match=r"one model. Start one for each"):
        call_command("worker", "-Q", "small.interactive,large.interactive")


def test_an_unknown_lane_of_a_queue_is_named_too():
    with pytest.raises(CommandError, match=r"no lane .fast.\. Known"):
        call_command("worker", "-Q", "small@1.fast")


def test_lanes_are_named_once():
    with pytest.raises(CommandError, match=r"Leave --lanes out"):
        call_command("worker", "-Q", "small.interactive", "--lanes", "background")


def test_a_queue_of_an_unknown_model_is_refused_by_name():
    with pytest.raises(CommandError, match=r"'large' has no release here"):
        call_command("worker", "-Q", "large.interactive")


async def test_the_loop_of_a_worker_keeps_to_its_lanes(alice: User, release: Release):
    answer = await in_database(enqueue, alice, release, 10)
    title = await in_database(enqueue, alice, release, 60)
    runner = Runner(SimulatedEngine(), release, uuid4(), ["background"])
    task = asyncio.create_task(runner.run())
    await until(lambda: Generation.objects.get(pk=title.pk).fence == 1)
    await runner.drain(0)
    await task
    assert (await in_database(Generation.objects.get, pk=answer.pk)).fence == 0


async def test_while_answers_wait_for_their_ends_titles_wait_too(alice: User, release: Release):
    runner = Runner(SimulatedEngine(), release, uuid4())
    for _ in range(ENDS_AT_ONCE):
        await runner._ends.acquire()
    title = await in_database(enqueue, alice, release, 60)
    answer = await in_database(enqueue, alice, release, 10)
    task = asyncio.create_task(runner.run())
    await until(lambda: Generation.objects.get(pk=answer.pk).fence == 1)
    assert (await in_database(Generation.objects.get, pk=title.pk)).fence == 0
    for _ in range(ENDS_AT_ONCE):
        runner._ends.release()
    await until(lambda: Generation.objects.get(pk=title.pk).fence == 1)
    await runner.drain(0)
    await task
