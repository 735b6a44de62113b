"""A conversation that does not fit loses its oldest messages, and people are told."""

import pytest

from inference.context import fit
from inference.engines.base import Turn
from inference.engines.simulated import SimulatedEngine

SYSTEM = Turn("system", "s" * 20)


def conversation(turns: int, length: int = 50) -> list[Turn]:
    roles = ("user", "assistant")
    return [Turn(roles[n % 2], f"{n:03}" + "x" * (length - 3)) for n in range(turns)]


@pytest.fixture
def engine() -> SimulatedEngine:
    """Reads 400 tokens; a character is a token and a message costs four more."""
    return SimulatedEngine(context_tokens=400)


async def test_what_fits_is_left_alone(engine: SimulatedEngine):
    turns = conversation(5)
    fitted = await fit(engine, turns, 100)
    assert (fitted.turns, fitted.left_out, fitted.cut_characters) == (tuple(turns), 0, 0)


async def test_the_oldest_are_left_out_and_counted(engine: SimulatedEngine):
    turns = conversation(21)
    fitted = await fit(engine, turns, 100)
    assert fitted.turns == tuple(turns[fitted.left_out :])
    assert await engine.count_tokens(fitted.turns) <= 300
    assert fitted.turns[0].role == "user"


async def test_no_more_is_left_out_than_needed(engine: SimulatedEngine):
    turns = conversation(21)
    fitted = await fit(engine, turns, 100)
    more = turns[fitted.left_out - 2 :]
    assert await engine.count_tokens(more) > 300


async def test_the_system_prompt_always_stays(engine: SimulatedEngine):
    fitted = await fit(engine, [SYSTEM, *conversation(21)], 100)
    assert fitted.turns[0] == SYSTEM


async def test_a_newest_message_too_long_by_itself_is_cut_at_its_end(engine: SimulatedEngine):
    long = Turn("user", "y" * 1000)
    fitted = await fit(engine, [*conversation(4), long], 100)
    assert fitted.left_out == 4
    assert len(fitted.turns[-1].content) + fitted.cut_characters == 1000
    assert await engine.count_tokens(fitted.turns) == 300


async def test_a_single_message_too_long_is_cut_and_not_dropped(engine: SimulatedEngine):
    fitted = await fit(engine, [Turn("user", "y" * 1000)], 100)
    assert fitted.left_out == 0
    assert len(fitted.turns[0].content) + fitted.cut_characters == 1000
    assert await engine.count_tokens(fitted.turns) == 300


async def test_the_answer_takes_a_quarter_of_the_window_at_most(engine: SimulatedEngine):
    fitted = await fit(engine, conversation(21), 100_000)
    assert 240 < await engine.count_tokens(fitted.turns) <= 300


async def test_the_same_conversation_is_always_fitted_the_same_way(engine: SimulatedEngine):
    assert await fit(engine, conversation(30), 50) == await fit(engine, conversation(30), 50)
