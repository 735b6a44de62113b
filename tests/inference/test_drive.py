"""A run on servers that break off, down to what is in its log and on its bill."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from uuid import uuid4

import pytest
from django.db.models.functions import Now

from accounts.models import User
from inference.database import in_database
from inference.drive import flush_seconds
from inference.engines.base import Delta, Interrupted, Request, Usage
from inference.engines.simulated import SimulatedEngine
from inference.models import Generation, Release
from inference.queue import LEASE
from tests.inference.test_runner import ask, until, working

pytestmark = pytest.mark.django_db(transaction=True)
Script = Callable[[Request], AsyncIterator[Delta]]


class Scripted(SimulatedEngine):
    """Says what a test tells it to, instead of what the simulated engine would."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.asked: list[Request] = []

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        yield Delta(usage=Usage(7), prompt_sha256="7")
        async for delta in self.script(request):
            yield delta
            await asyncio.sleep(0.05)  # one flush each


async def ended(engine: Scripted, user: User, release: Release) -> Generation:
    async with working(engine, release):
        run = await in_database(ask, user, release, "Hi")
        mine = Generation.objects.filter(pk=run.pk)
        await until(lambda: not mine.get().is_active)
    return await in_database(mine.get)


async def begun_anew(request: Request) -> AsyncIterator[Delta]:
    yield Delta("bad", usage=Usage(7, 0, 1))
    yield Delta(restart=True)
    yield Delta("go", usage=Usage(7, 0, 1))
    yield Delta("od", usage=Usage(7, 0, 2))
    yield Delta(finish="end", usage=Usage(9, 0, 5))


async def broken_off(request: Request) -> AsyncIterator[Delta]:
    yield Delta("good", usage=Usage(7, 0, 3))
    raise Interrupted("The model’s server cannot go on.")


async def test_an_answer_begun_anew_is_logged_in_a_new_epoch(alice: User, release: Release):
    run = await ended(Scripted(begun_anew), alice, release)
    assert (run.status, run.text, run.epoch, run.log_seq) == ("done", "good", 1, 3)
    events = await in_database(run.log.read, 0, 1)
    assert [(event.epoch, event.kind) for event in events] == [
        (1, "delta"),
        (1, "delta"),
        (1, "done"),
    ]


async def test_without_token_ids_the_engines_count_is_on_the_bill(alice: User, release: Release):
    run = await ended(Scripted(begun_anew), alice, release)
    assert (run.prompt_tokens, run.completion_tokens, bytes(run.token_ids)) == (9, 5, b"")


async def test_an_answer_nobody_can_go_on_with_is_interrupted_and_kept(
    alice: User, release: Release
):
    run = await ended(Scripted(broken_off), alice, release)
    assert (run.status, run.text, run.completion_tokens) == ("interrupted", "good", 3)
    assert run.error == "The model’s server cannot go on."
    assert run.can_continue


async def test_continuing_it_hands_the_engine_its_text_and_bills_only_what_is_new(
    alice: User, release: Release
):
    first = await ended(Scripted(broken_off), alice, release)

    async def rest(request: Request) -> AsyncIterator[Delta]:
        yield Delta(" day", usage=Usage(7, 0, 5))
        yield Delta(finish="end", usage=Usage(7, 0, 5))

    engine = Scripted(rest)
    async with working(engine, release):
        run = await in_database(
            lambda: Generation.objects.enqueue(
                user=alice, release=release, messages=[{"role": "user", "content": "Hi"}],
                lengthens=first,
            )
        )  # fmt: skip
        await until(lambda: not Generation.objects.get(pk=run.pk).is_active)
    run = await in_database(Generation.objects.get, pk=run.pk)
    assert (run.text, run.completion_tokens) == ("good day", 2)
    assert engine.asked[0].text == "good"


async def test_a_whole_answer_whose_writer_died_before_its_end_is_ended_as_it_is(
    alice: User, release: Release
):
    run = await in_database(ask, alice, release, "Hi")

    def die_before_the_end() -> None:
        [first] = Generation.objects.claim(release, uuid4(), 1)
        first.log.append(first.fence, 1, "who", [1])
        first.log.append(first.fence, 2, "le", [2, 3], finish="length")
        Generation.objects.filter(pk=run.pk).update(lease_until=Now() - LEASE)

    await in_database(die_before_the_end)
    engine = Scripted(broken_off)
    async with working(engine, release):
        await until(lambda: not Generation.objects.get(pk=run.pk).is_active)
    run = await in_database(Generation.objects.get, pk=run.pk)
    assert (run.status, run.text, run.finish_reason) == ("done", "whole", "length")
    assert (run.completion_tokens, run.log_seq) == (3, 3)
    assert run.prompt_tokens > 0, "its count had not been stored"
    assert engine.asked == []


async def test_readers_are_told_that_the_text_is_whole_before_its_end_is_written(
    alice: User, release: Release, valkey: None
):
    async def late(request: Request) -> AsyncIterator[Delta]:
        yield Delta("who", (1,))
        yield Delta("le", (2,))
        yield Delta(finish="stop", usage=Usage(7, 0, 2))

    run = await ended(Scripted(late), alice, release)
    events = await in_database(run.log.read, 0, 0)
    told = [(event.kind, event.text, event.finish) for event in events]
    assert told[-2:] == [("delta", "", "stop"), ("done", "", "")]
    assert [finish for *_, finish in told[:-2]] == ["", ""]


async def pausing(request: Request) -> AsyncIterator[Delta]:
    """The last word comes close behind the first, and the end a long time after."""
    for word in ("one", " two"):
        yield Delta(word, usage=Usage(7, 0, 1))
        await asyncio.sleep(0.01)
    await asyncio.sleep(30)
    yield Delta(finish="end", usage=Usage(9, 0, 2))


class Quick(Scripted):
    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        yield Delta(usage=Usage(7), prompt_sha256="7")
        async for delta in self.script(request):
            yield delta


async def test_text_without_ids_is_shown_without_waiting_for_what_comes_next(
    alice: User, release: Release
):
    async with working(Quick(pausing), release):
        run = await in_database(ask, alice, release, "Hi")
        await until(lambda: run.log.text() == "one two")
        await in_database(Generation.objects.filter(pk=run.pk).cancel)
        await until(lambda: not Generation.objects.get(pk=run.pk).is_active)


def test_tokens_come_together_for_longer_the_more_answers_a_process_gives():
    assert flush_seconds(1) == flush_seconds(16) == 0.025
    assert flush_seconds(64) == 0.05
    assert flush_seconds(1000) == 0.1, "ten times a second at least"
