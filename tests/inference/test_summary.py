"""What does not fit is summarised first, if the operator wants that."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from accounts.models import User
from inference.database import in_database
from inference.engines.base import Delta, EngineError, Request, Turn, Usage
from inference.engines.simulated import SimulatedEngine
from inference.models import Generation, Release
from inference.summary import fit_summarised
from inference.tokenlog import unpack
from tests.inference.test_drive import Scripted
from tests.inference.test_runner import until, working

SYSTEM = Turn("system", "s" * 20)
SUMMARY = "Summary of the earlier conversation"


def conversation(turns: int, length: int = 100) -> list[Turn]:
    roles = ("user", "assistant")
    return [Turn(roles[n % 2], f"<{n:03}>" + "x" * (length - 5)) for n in range(turns)]


async def says(*texts: str) -> AsyncIterator[Delta]:
    for text in texts:
        yield Delta(text, usage=Usage(7, 0, 2))
    yield Delta(finish="end", usage=Usage(7, 0, len(texts)))


def writer(*texts: str, context_tokens: int = 1600) -> Scripted:
    engine = Scripted(lambda request: says(*texts))
    engine._context = context_tokens
    return engine


# --- what becomes of a conversation -------------------------------------------------------
@pytest.fixture
def engine() -> SimulatedEngine:
    """Reads 1600 tokens; a character is a token and a message costs four more."""
    return SimulatedEngine(context_tokens=1600, tokens_per_second=0)


async def test_the_summary_stands_after_the_system_prompt_within_the_room(engine: SimulatedEngine):
    turns = [SYSTEM, *conversation(21)]
    fitted = await fit_summarised(engine, turns, 400, 0, "")
    assert fitted is not None
    assert fitted.turns[:2] == (SYSTEM, Turn("system", fitted.summary))
    assert fitted.summary.startswith(SUMMARY)
    assert fitted.turns[2:] == tuple(turns[1 + fitted.left_out :])
    assert fitted.left_out > 0
    assert await engine.count_tokens(fitted.turns) <= 1200


async def test_the_same_conversation_is_always_summarised_the_same_way(engine: SimulatedEngine):
    first, again = [await fit_summarised(engine, conversation(30), 50, 0, "") for _ in range(2)]
    assert first == again is not None


async def test_the_model_is_shown_exactly_what_is_left_out():
    engine = writer(" Ada  likes\nrivers. ")
    turns = conversation(17)
    fitted = await fit_summarised(engine, turns, 400, 0, "alice")
    assert fitted is not None
    [asked] = engine.asked
    shown = asked.turns[-1].content
    assert [turn.content in shown for turn in turns] == [n < fitted.left_out for n in range(17)]
    assert shown.startswith("User: <000>")
    assert asked.turns[0].role == "system"
    assert (asked.sampling.temperature, asked.sampling.max_tokens) == (0, 100)
    assert fitted.summary.endswith(": Ada likes rivers.")
    assert fitted.spent == Usage(7, 0, 1)


async def test_of_more_than_the_model_can_read_the_newest_part_is_summarised():
    engine = writer("Rivers.")
    turns = conversation(60)
    fitted = await fit_summarised(engine, turns, 400, 0, "")
    assert fitted is not None
    [asked] = engine.asked
    assert turns[fitted.left_out - 1].content in asked.turns[-1].content
    assert turns[0].content not in asked.turns[-1].content
    assert await engine.count_tokens(asked.turns) == 1500


async def broken(request: Request) -> AsyncIterator[Delta]:
    yield Delta("Some")
    raise EngineError("The model broke.")


@pytest.mark.parametrize("engine", [Scripted(broken), writer(), writer(" \n")])
async def test_a_summary_that_fails_or_says_nothing_is_none(engine: Scripted):
    engine._context = 1600
    assert await fit_summarised(engine, conversation(21), 400, 0, "") is None


async def test_nothing_is_asked_where_everything_fits():
    engine = writer("Rivers.")
    assert await fit_summarised(engine, conversation(5), 400, 0, "") is None
    assert engine.asked == []


# --- what becomes of an answer ------------------------------------------------------------
in_the_database = pytest.mark.django_db(transaction=True)
LONG = "river " * 200


def ask(user: User, release: Release, *texts: str, **fields: Any) -> Generation:
    messages = [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(texts)]
    return Generation.objects.enqueue(
        user=user, release=release, messages=messages, **{"parameters": {"seed": 1}, **fields}
    )


async def answered(engine: SimulatedEngine, user: User, release: Release, *texts: str,
                   **fields: Any) -> Generation:  # fmt: skip
    async with working(engine, release):
        run = await in_database(lambda: ask(user, release, *texts, **fields))
        mine = Generation.objects.filter(pk=run.pk).select_related("prompt")
        await until(lambda: not mine.get().is_active)
    return await in_database(mine.get)


@pytest.fixture
def wanted(settings: Any) -> None:
    settings.SUMMARISE_LEFT_OUT = True


QUESTION = (LONG, LONG, "count 9")


@in_the_database
async def test_off_by_default_what_does_not_fit_is_left_out(alice: User, release: Release, engine):
    engine._context = 500
    run = await answered(engine, alice, release, *QUESTION)
    assert (run.prompt.left_out, run.prompt.summary, run.summary_tokens) == (2, "", 0)


@in_the_database
@pytest.mark.usefixtures("wanted")
async def test_its_tokens_are_kept_apart_from_the_answers(alice: User, release: Release, engine):
    engine._context = 500
    run = await answered(engine, alice, release, *QUESTION)
    assert (run.status, run.text) == ("done", "1 2 3 4 5 6 7 8 9")
    assert run.prompt.left_out == 2
    assert run.prompt.summary.startswith(SUMMARY)
    assert run.completion_tokens == len(unpack(bytes(run.token_ids)))
    assert 0 < run.summary_tokens <= 500 // 16
    assert run.summary_prompt_tokens > 0


@in_the_database
@pytest.mark.usefixtures("wanted")
async def test_a_summary_that_fails_costs_nothing_but_itself(alice: User, release: Release):
    def unable(request: Request) -> AsyncIterator[Delta]:
        is_for_summary = "Summarise" in request.turns[-1].content
        return broken(request) if is_for_summary else says("Yes.")

    engine = Scripted(unable)
    engine._context = 500
    run = await answered(engine, alice, release, *QUESTION)
    assert (run.status, run.text) == ("done", "Yes.")
    assert (run.prompt.left_out, run.prompt.summary, run.summary_tokens) == (2, "", 0)


@in_the_database
@pytest.mark.usefixtures("wanted")
async def test_a_stop_during_the_summary_ends_the_run(alice: User, release: Release, engine):
    engine._context = 500
    async with working(engine, release):
        run = await in_database(ask, alice, release, LONG, LONG + "prefill=20", "count 9")
        mine = Generation.objects.filter(pk=run.pk)
        await until(lambda: bool(engine.capacity().busy))
        asked_at = time.monotonic()
        await in_database(run.cancel)
        await until(lambda: mine.get().status == "stopped")
        assert time.monotonic() - asked_at < 1.5  # generous
        await until(lambda: not engine.capacity().busy)
    assert (await in_database(mine.get)).text == ""


@in_the_database
@pytest.mark.usefixtures("wanted")
async def test_a_run_that_was_tried_in_vain_takes_no_chances(alice: User, release: Release, engine):
    engine._context = 500
    run = await in_database(ask, alice, release, *QUESTION)
    mine = Generation.objects.filter(pk=run.pk).select_related("prompt")
    await in_database(lambda: mine.update(fruitless_attempts=2))
    async with working(engine, release):
        await until(lambda: mine.get().status == "done")
    assert (await in_database(mine.get)).prompt.summary == ""


@in_the_database
@pytest.mark.usefixtures("wanted")
async def test_a_lengthened_answer_goes_by_the_same_summary_and_pays_it_once(
    alice: User, release: Release, engine
):
    engine._context = 400
    first = await answered(
        engine, alice, release, *QUESTION, parameters={"seed": 1, "max_tokens": 5}
    )
    run = await answered(engine, alice, release, *QUESTION, lengthens=first)
    assert (first.text, run.text) == ("1 2 3", "1 2 3 4 5 6 7 8 9")
    assert run.prompt.summary == first.prompt.summary != ""
    assert run.summary_tokens == 0 < first.summary_tokens
