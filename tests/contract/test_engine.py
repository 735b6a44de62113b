"""What every engine must keep."""

import asyncio
import contextlib
import time
from dataclasses import replace

import pytest

from inference.engines.base import (
    DECODE_SECONDS,
    PREFILL_SECONDS,
    Engine,
    Request,
    RequestRefused,
    Sampling,
    Turn,
)
from tests.contract.conftest import collect, text_of, tokens_of

GREEDY = Sampling(temperature=0, max_tokens=40)
SEEDED = Sampling(temperature=0.8, seed=7, max_tokens=40)


def ask(text: str, sampling: Sampling = SEEDED, **fields: object) -> Request:
    return Request(turns=(Turn("user", text),), sampling=sampling, **fields)  # type: ignore[arg-type]


async def test_a_stream_says_first_what_prompt_was_read_and_last_why_it_ended(engine: Engine):
    deltas = await collect(engine, ask("Tell me about rivers."))
    again = await collect(engine, ask("Tell me about rivers."))
    other = await collect(engine, ask("Tell me about lakes."))
    assert deltas[0].usage
    assert not deltas[0].token_ids
    assert deltas[0].prompt_sha256 == again[0].prompt_sha256 != other[0].prompt_sha256
    assert [delta.finish for delta in deltas if delta.finish] == [deltas[-1].finish]


@pytest.mark.promises("tokens")
async def test_usage_counts_the_prompt_and_every_token_once(engine: Engine):
    turns = (Turn("user", "Tell me about rivers."),)
    deltas = await collect(engine, Request(turns, SEEDED))
    usage = deltas[-1].usage
    assert usage is not None
    assert usage.completion == len(tokens_of(deltas)) <= 40
    assert deltas[0].usage
    assert usage.prompt == deltas[0].usage.prompt == await engine.count_tokens(turns)


@pytest.mark.promises("tokens")
async def test_the_tokens_of_an_answer_spell_its_text(engine: Engine):
    deltas = await collect(engine, ask("Name three colours."))
    assert await engine.text_of(tokens_of(deltas)) == text_of(deltas)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
async def test_the_same_request_gives_the_same_answer(engine: Engine, sampling: Sampling):
    first, second = [await collect(engine, ask("Name a colour.", sampling)) for _ in range(2)]
    assert tokens_of(first) == tokens_of(second)
    assert text_of(first) == text_of(second)


async def test_another_seed_gives_another_answer(engine: Engine):
    one = await collect(engine, ask("Tell me a story.", SEEDED))
    other = await collect(engine, ask("Tell me a story.", replace(SEEDED, seed=8)))
    assert text_of(one) != text_of(other)


@pytest.mark.promises("the same over a seam")
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
async def test_a_continued_run_ends_as_if_it_had_never_been_interrupted(
    engine: Engine, sampling: Sampling
):
    whole = await collect(engine, ask("Tell me about the sea.", sampling))
    tokens = tokens_of(whole)
    others = [asyncio.create_task(collect(engine, ask(f"Number {n}?"))) for n in range(2)]
    for cut in (0, 1, 7, 20, len(tokens) - 1):
        emitted = tokens[:cut]
        rest = await collect(engine, ask("Tell me about the sea.", sampling, emitted=emitted))
        assert rest[0].prompt_sha256 == whole[0].prompt_sha256
        assert emitted + tokens_of(rest) == tokens
        assert text_of(whole).endswith(text_of(rest))
        assert rest[-1].usage == whole[-1].usage or rest[-1].usage.completion == len(tokens)  # type: ignore[union-attr]
    await asyncio.gather(*others)


@pytest.mark.promises("tokens")
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
async def test_a_continued_run_repeats_nothing_and_keeps_its_limit(
    engine: Engine, sampling: Sampling
):
    whole = await collect(engine, ask("Tell me about the sea.", sampling))
    emitted = tokens_of(whole)[:20]
    rest = await collect(engine, ask("Tell me about the sea.", sampling, emitted=emitted))
    assert rest[-1].usage is not None
    assert rest[-1].usage.completion == 20 + len(tokens_of(rest)) <= 40
    assert rest[-1].usage.prompt == whole[-1].usage.prompt  # type: ignore[union-attr]


@pytest.mark.promises("the same over a seam")
async def test_a_turn_that_reused_a_prefix_can_be_continued_where_nothing_is_cached(engine: Engine):
    opening = Turn("user", "Name three animals.")
    first = await collect(engine, Request((opening,), GREEDY, scope="warm"))
    turns = (opening, Turn("assistant", text_of(first)), Turn("user", "And three plants."))
    second = await collect(engine, Request(turns, SEEDED, scope="warm"))
    tokens = tokens_of(second)
    again = Request(turns, SEEDED, emitted=tokens[:9], scope="cold")
    assert tokens[:9] + tokens_of(await collect(engine, again)) == tokens


@pytest.mark.promises("the same beside others")
async def test_who_else_is_running_makes_no_difference(engine: Engine):
    questions = [f"Describe the number {n}." for n in range(6)]
    alone = [tokens_of(await collect(engine, ask(question))) for question in questions]
    together = await asyncio.gather(*(collect(engine, ask(question)) for question in questions))
    assert [tokens_of(deltas) for deltas in together] == alone


async def test_max_tokens_ends_the_answer_by_length(engine: Engine):
    deltas = await collect(engine, ask("Tell me a long story.", replace(SEEDED, max_tokens=5)))
    assert deltas[-1].usage
    assert deltas[-1].usage.completion == 5
    assert deltas[-1].finish == "length"


async def test_a_stop_string_is_found_across_tokens_and_never_shown(engine: Engine):
    whole = text_of(await collect(engine, ask("Tell me about rivers.", GREEDY)))
    stop = whole[10:17]
    deltas = await collect(engine, ask("Tell me about rivers.", replace(GREEDY, stop=(stop,))))
    assert text_of(deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish == "stop"


@pytest.mark.promises("tokens")
async def test_an_answer_that_had_all_its_tokens_when_it_was_interrupted_only_ends(engine: Engine):
    whole = await collect(engine, ask("Tell me about rivers.", replace(SEEDED, max_tokens=9)))
    for sampling in (replace(SEEDED, max_tokens=9), replace(SEEDED, stop=(text_of(whole)[5:9],))):
        first = await collect(engine, ask("Tell me about rivers.", sampling))
        again = ask("Tell me about rivers.", sampling, emitted=tokens_of(first))
        rest = await collect(engine, again)
        assert (tokens_of(rest), rest[-1].finish) == ((), first[-1].finish)


async def test_closing_a_stream_frees_its_slot_within_300_ms(engine: Engine):
    async with contextlib.aclosing(engine.generate(ask("Tell me a long story."))) as stream:
        async for delta in stream:
            if delta.text:
                break
    await _assert_idle_within(engine, 0.3)


async def test_closing_a_stream_in_a_long_prefill_frees_its_slot_within_300_ms(engine: Engine):
    async with contextlib.aclosing(engine.generate(ask("river " * 1200 + "prefill=2"))) as stream:
        await anext(stream)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(stream)
    await _assert_idle_within(engine, 0.3)


async def _assert_idle_within(engine: Engine, seconds: float) -> None:
    started = time.monotonic()
    while engine.capacity().busy and time.monotonic() - started < 5:
        await asyncio.sleep(0.005)
    assert time.monotonic() - started < seconds


@pytest.mark.promises("tokens")
async def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers(engine: Engine):
    with pytest.raises(RequestRefused, match=r"has \d+ tokens; this model reads 2048"):
        await collect(engine, ask("river mountain " * 2000))


async def test_more_requests_than_slots_all_get_their_answer(engine: Engine):
    answers = await asyncio.gather(
        *(collect(engine, ask(f"Say {n}.", replace(SEEDED, max_tokens=8))) for n in range(10))
    )
    assert all(deltas[-1].finish for deltas in answers)


async def test_an_idle_engine_is_not_stuck(engine: Engine):
    await asyncio.sleep(0.05)
    assert engine.seconds_without_progress() == 0.0
    assert engine.most_seconds_without_progress() in {DECODE_SECONDS, PREFILL_SECONDS}


async def test_a_fingerprint_stays_the_same(engine: Engine):
    assert engine.fingerprint() == engine.fingerprint() != ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_tokens": 0},
        {"seed": -1},
        {"temperature": "hot"},
        {"stop": [""]},
        {"stop": ["x"] * 9},
        {"wisdom": 3},
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(wrong: dict[str, object]):
    with pytest.raises(RequestRefused, match=next(iter(wrong))):
        Sampling.from_parameters(wrong)
