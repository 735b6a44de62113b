"""Every sampling parameter, on engines: kept to, or refused by name."""

import asyncio
import contextlib
import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from inference.engines.base import (
    BIAS,
    Engine,
    EngineError,
    Request,
    RequestRefused,
    Sampling,
    Turn,
)
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.several import seed_of, several
from inference.engines.simulated import LACKS, SimulatedEngine
from inference.engines.template import Segment
from tests.contract.conftest import collect, text_of, tokens_of
from tests.contract.test_engine import GREEDY, SEEDED, ask

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": ["string", "null"], "maxLength": 30},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    {"type": "object", "additionalProperties": {"type": "integer"}},
    PERSON,
    {"enum": ["red", "reddish", "green", 7, None]},
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 5},
    {"type": "array", "items": {"type": "array", "items": {"type": "number"}, "maxItems": 3},
     "minItems": 1, "maxItems": 3},
    {"$defs": {"list": {"type": "object", "required": ["value", "next"], "properties": {
        "value": {"type": "integer", "maximum": 999}, "next": {"anyOf": [
            {"type": "null"}, {"$ref": "#/$defs/list"}]}}}}, "$ref": "#/$defs/list"},
    {"type": "number", "minimum": -1, "exclusiveMaximum": 1},
    {"type": "object", "properties": {f"o{n}": {"type": "boolean"} for n in range(5)}},
    {"anyOf": [PERSON, {"type": "object", "properties": {"kind": {"const": "none"}},
                        "required": ["kind"]}]},
    {"prefixItems": [{"const": "point"}, {"type": "integer"}, {"type": "integer"}],
     "items": False, "minItems": 3},
    {"type": "string", "minLength": 5, "maxLength": 12},
    {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
]  # fmt: skip


def varied(sampling: Sampling, **parameters: Any) -> Sampling:
    """With parameters in any of the forms they may have."""
    return replace(sampling, **parameters)


@pytest.mark.real_model
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, varied(SEEDED, temperature=2, seed=1)])
async def test_an_answer_under_a_schema_is_json_that_it_accepts(
    llama: LlamaCppEngine, schema: Any, sampling: Sampling
):
    sampling = varied(sampling, json_schema=schema, max_tokens=300)
    if "$defs" in schema:  # a small model would nest the list in lists until max_tokens
        null = llama._weights.tokenize([Segment("null", trusted=False)])
        sampling = varied(sampling, logit_bias={str(token): 15 for token in null})
    deltas = await collect(llama, ask("Answer in JSON.", sampling))
    assert deltas[-1].finish == "end"
    Draft202012Validator(schema).validate(json.loads(text_of(deltas)))


@pytest.mark.real_model
async def test_an_answer_under_a_schema_may_be_cut_by_length(llama: LlamaCppEngine):
    sampling = varied(SEEDED, json_schema=PERSON, max_tokens=4)
    deltas = await collect(llama, ask("Answer in JSON.", sampling))
    assert (deltas[-1].finish, len(tokens_of(deltas))) == ("length", 4)


@pytest.mark.real_model
@pytest.mark.parametrize(
    "sampling",
    [
        varied(SEEDED, json_schema=SCHEMAS[-1], temperature=1.5),
        varied(SEEDED, frequency_penalty=0.7, presence_penalty=0.4, repeat_window=8),
        varied(GREEDY, frequency_penalty=1.5, logit_bias={"30": 3, "42": -50}),
    ],
)
async def test_a_continued_run_goes_on_with_its_grammar_and_its_penalties(
    llama: LlamaCppEngine, sampling: Sampling
):
    whole = await collect(llama, ask("Two people in JSON.", sampling))
    tokens = tokens_of(whole)
    for cut in (0, 1, 9, len(tokens) - 1, len(tokens)):
        again = ask("Two people in JSON.", sampling, emitted=tokens[:cut])
        rest = await collect(llama, again)
        assert tokens[:cut] + tokens_of(rest) == tokens
        assert rest[-1].finish == whole[-1].finish


@pytest.mark.real_model
async def test_what_does_not_follow_the_schema_cannot_be_continued(llama: LlamaCppEngine):
    words = tokens_of(await collect(llama, ask("Tell me about rivers.", GREEDY)))
    with pytest.raises(EngineError, match="does not follow json_schema"):
        await collect(llama, ask("x", varied(GREEDY, json_schema=PERSON), emitted=words[:3]))


@pytest.mark.real_model
async def test_log_probabilities_belong_to_the_tokens_and_to_one_distribution(
    llama: LlamaCppEngine,
):
    sampling = varied(GREEDY, logprobs=20, repeat_penalty=1)
    deltas = await collect(llama, ask("Name a colour.", sampling))
    found = [logprob for delta in deltas for logprob in delta.logprobs]
    assert tuple(each.token_id for each in found) == tokens_of(deltas)
    for each in found:
        token, piece, logprob = each.top[0]  # greedy: the likeliest is the chosen one
        assert (token, piece, logprob) == (each.token_id, each.piece, each.logprob)
        assert 0 < sum(math.exp(logprob) for _, _, logprob in each.top) <= 1 + 1e-6
        assert all(a[2] >= b[2] for a, b in pairwise(each.top))
    assert b"".join(each.piece for each in found).decode() == text_of(deltas)


@pytest.mark.real_model
async def test_a_bias_bans_a_token_and_forces_one(llama: LlamaCppEngine):
    first = tokens_of(await collect(llama, ask("Name a colour.", GREEDY)))[0]
    banned = varied(GREEDY, logit_bias={str(first): -BIAS})
    assert first not in tokens_of(await collect(llama, ask("Name a colour.", banned)))
    forced = varied(SEEDED, logit_bias={str(first): BIAS}, repeat_penalty=1, max_tokens=5)
    assert tokens_of(await collect(llama, ask("Tell me.", forced))) == (first,) * 5


@pytest.mark.real_model
async def test_penalties_make_an_answer_repeat_itself_less(llama: LlamaCppEngine):
    def distinct(tokens: tuple[int, ...]) -> float:
        return len(set(tokens)) / len(tokens)

    plain = varied(GREEDY, repeat_penalty=1, max_tokens=60)
    counted = varied(plain, logit_bias={"2": -BIAS}, frequency_penalty=2, presence_penalty=2)
    question = "Count to ten, over and over."
    answers = [tokens_of(await collect(llama, ask(question, each))) for each in (plain, counted)]
    assert distinct(answers[0]) < distinct(answers[1])


@pytest.mark.real_model
async def test_a_bias_of_a_token_the_model_lacks_is_refused_by_name(llama: LlamaCppEngine):
    with pytest.raises(RequestRefused, match="logit_bias names token 99999999"):
        await collect(llama, ask("x", varied(GREEDY, logit_bias={"99999999": 1})))


@pytest.mark.parametrize("name", LACKS)
async def test_the_simulated_engine_refuses_by_name_what_it_lacks(name: str):
    values = {"json_schema": {"type": "object"}, "logprobs": 3, "logit_bias": {"3": 1}}
    sampling = varied(SEEDED, **{name: values[name]})
    with pytest.raises(RequestRefused, match=f"The simulated engine cannot do {name}"):
        await collect(SimulatedEngine(), ask("x", sampling))


# --- several answers --------------------------------------------------------------------------
async def test_several_answers_are_those_of_their_seeds_and_the_first_is_the_requests_own(
    engine: Engine,
):
    answers = [""] * 3
    tokens: list[list[int]] = [[], [], []]  # none, where the engine tells none
    finished = []
    async for index, delta in several(engine, ask("Tell me a story."), 3):
        answers[index] += delta.text
        tokens[index].extend(delta.token_ids)
        finished += [index] if delta.finish else []
    seeds = [seed_of(SEEDED.seed, index) for index in range(3)]
    assert seeds[0] == SEEDED.seed
    alone = [await collect(engine, ask("Tell me a story.", varied(SEEDED, seed=s))) for s in seeds]
    assert answers == [text_of(deltas) for deltas in alone]
    assert list(map(tuple, tokens)) == [tokens_of(deltas) for deltas in alone]
    assert sorted(finished) == [0, 1, 2]
    assert len(set(answers)) == 3


async def test_several_answers_evaluate_their_prompt_once(llama: LlamaCppEngine):
    long = Request((Turn("user", "One two three. " * 40),), Sampling(max_tokens=4), scope="several")
    cached: dict[int, int] = {}
    async for index, delta in several(llama, long, 3):
        if delta.finish and delta.usage:
            cached[index] = delta.usage.cached
    assert cached[0] < 50
    assert min(cached[1], cached[2]) > 100


async def test_closing_several_answers_frees_all_their_slots(engine: Engine):
    async with contextlib.aclosing(several(engine, ask("Tell me a story."), 4)) as stream:
        async for _, delta in stream:
            if delta.token_ids:
                break
    async with asyncio.timeout(0.5):
        while engine.capacity().busy:
            await asyncio.sleep(0.005)


async def test_an_error_of_one_answer_ends_all(engine: Engine):
    with pytest.raises(RequestRefused, match=r"this model reads 2048|\(2048 tokens\)"):
        async for _ in several(engine, ask("river mountain " * 2000), 2):
            pass
    assert engine.capacity().busy == 0


@pytest.mark.parametrize("n", [0, 9, True, "2", 1.0, None])
async def test_a_number_of_answers_out_of_range_is_refused_by_name(engine: Engine, n: Any):
    with pytest.raises(RequestRefused, match="n must be"):
        await anext(several(engine, ask("x"), n))


# --- any value at all -------------------------------------------------------------------------
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("name", Sampling.__dataclass_fields__)
@settings(max_examples=60, deadline=None)
@given(value=anything | st.integers(-3, 3) | st.floats(-3, 3))
def test_any_value_works_or_is_refused_by_name(name: str, value: Any):
    try:
        sampling = Sampling.from_parameters({name: value})
    except RequestRefused as error:
        assert str(error).startswith(name)  # noqa: PT017 - either is right
    else:
        assert Sampling.from_parameters({name: getattr(sampling, name)}) == sampling
        hash(sampling)
