"""With REPRODUCIBLE every token is evaluated in one way only, whatever else there is to do.

The build these tests run on gives the same values either way, so what is compared is how they
come about: every call of llama.cpp.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from inference.engines.base import Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.llama_library import Context, Entry
from tests.contract.conftest import collect, model_file, tokens_of

pytestmark = pytest.mark.real_model
Call = list[tuple[int, int, bool]]
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 6
SAMPLING = Sampling(temperature=0.7, repeat_penalty=1, seed=5, max_tokens=24)
QUESTION = Request((Turn("user", f"Repeat this: {TEXT}"),), SAMPLING, scope="one chat")
OTHER = Request((Turn("user", f"Repeat this: {TEXT} Shout."),), SAMPLING, scope="one chat")


@pytest.fixture
async def engine() -> AsyncIterator[LlamaCppEngine]:
    made = LlamaCppEngine(model_file(), slots=4, context_tokens=512, reproducible=True)
    await made.start(lambda percent: None)
    yield made
    await made.stop()


@pytest.fixture
def calls(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What llama.cpp is asked to evaluate: token, position and whether its values are wanted."""
    seen: list[Call] = []
    decode = Context.decode

    def watched(context: Context, entries: Sequence[Entry]) -> object:
        assert {entry.slot for entry in entries} == {0}
        seen.append([(entry.token, entry.position, entry.wanted) for entry in entries])
        return decode(context, entries)

    monkeypatch.setattr(Context, "decode", watched)
    return seen


def taken(calls: list[Call]) -> list[Call]:
    """Those so far; the next ones are counted anew."""
    found = calls.copy()
    calls.clear()
    return found


async def test_an_answer_among_others_is_evaluated_as_it_is_alone(
    engine: LlamaCppEngine, calls: list[Call]
):
    alone = tokens_of(await collect(engine, QUESTION))
    expected = taken(calls)
    await asyncio.gather(*(collect(engine, OTHER) for _ in range(2)))
    others = taken(calls)
    beside = [asyncio.create_task(collect(engine, each)) for each in (QUESTION, OTHER)]
    assert tokens_of(await beside[0]) == alone
    await beside[1]
    starts = range(0, len(calls), len(others) // 2)  # either may have come first
    assert expected in [calls[start : start + len(expected)] for start in starts]
    assert len(calls) == len(expected) + len(others) // 2


async def test_an_answer_that_is_gone_on_with_is_evaluated_as_if_it_had_never_ended(
    engine: LlamaCppEngine, calls: list[Call]
):
    whole = tokens_of(await collect(engine, QUESTION))
    expected = taken(calls)
    emitted = whole[:9]
    rest = await collect(engine, Request(QUESTION.turns, SAMPLING, emitted, scope="one chat"))
    assert emitted + tokens_of(rest) == whole
    assert calls == expected


def test_a_reproducible_engine_says_so_and_takes_one_answer_at_a_time(engine: LlamaCppEngine):
    assert engine.capacity().slots == 1
    assert engine.fingerprint().count(" reproducible threads=1 ") == 1
