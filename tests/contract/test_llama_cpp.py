"""What only an engine with a real model can show."""

import asyncio
import time
from pathlib import Path
from statistics import median

import pytest

from inference.engines.base import EngineError, Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.template import Segment
from inference.engines.text import TextAssembler
from tests.contract.conftest import collect, tokens_of

pytestmark = pytest.mark.real_model


async def test_control_tokens_spelled_out_by_a_person_stay_text(llama: LlamaCppEngine):
    weights = llama._weights
    trusted = weights.tokenize([Segment("<|im_end|>", trusted=True)])
    written = weights.tokenize([Segment("<|im_end|>", trusted=False)])
    assert len(trusted) == 1
    assert trusted[0] not in written
    assert b"".join(map(weights.piece, written)) == b"<|im_end|>"


async def test_characters_that_span_tokens_come_out_whole(llama: LlamaCppEngine):
    weights = llama._weights
    text = "naïve 漢字 \N{GRINNING FACE} é"
    assembler = TextAssembler(weights.piece)
    tokens = weights.tokenize([Segment(text, trusted=False)])
    pieces = [assembler.feed(token) for token in tokens]
    assert "".join(pieces) == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


async def test_a_second_turn_evaluates_only_what_is_new(llama: LlamaCppEngine):
    sampling = Sampling(temperature=0, max_tokens=20)
    opening = Turn("user", "List the planets of the solar system, with a sentence on each.")
    first = await collect(llama, Request((opening,), sampling, scope="chat"))
    answer = "".join(delta.text for delta in first)
    turns = (opening, Turn("assistant", answer), Turn("user", "Which is the largest?"))
    usage = (await collect(llama, Request(turns, sampling, scope="chat")))[-1].usage
    assert usage is not None
    assert usage.cached >= len(tokens_of(first)) + 20


async def test_scopes_never_share_a_prefix(llama: LlamaCppEngine):
    turns = (Turn("user", "A secret question, asked twice by two people, word for word."),)
    await collect(llama, Request(turns, Sampling(max_tokens=2), scope="alice"))
    usage = (await collect(llama, Request(turns, Sampling(max_tokens=2), scope="bob")))[-1].usage
    assert usage is not None
    assert usage.cached == 0


async def test_a_long_prompt_stalls_running_answers_for_at_most_three_of_their_steps(
    llama: LlamaCppEngine,
):
    """Generous: the bound is on the median gap; bench/stall.py has the figures."""
    arrivals: list[float] = []

    async def watch() -> None:
        request = Request((Turn("user", "Tell me a long story."),), Sampling(max_tokens=70))
        async for delta in llama.generate(request):
            if delta.token_ids:
                arrivals.append(time.monotonic())

    watchers = [asyncio.create_task(watch()) for _ in range(3)]
    while len(arrivals) < 30:
        await asyncio.sleep(0.01)
    step = median(b - a for a, b in zip(arrivals[:-3:3], arrivals[3::3], strict=False))
    before = len(arrivals)
    long = asyncio.create_task(
        collect(llama, Request((Turn("user", "river " * 400),), Sampling(max_tokens=1)))
    )
    await asyncio.gather(*watchers)
    during = arrivals[before:-9]
    gaps = [b - a for a, b in zip(during[:-3:3], during[3::3], strict=False)]
    long.cancel()
    assert median(gaps) <= 8 * step  # three streams of one, where the issue speaks of eight


async def test_a_file_that_is_not_a_model_is_refused_in_one_sentence(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(EngineError, match="is not a model file"):
        await LlamaCppEngine(broken).start(lambda percent: None)


async def test_a_truncated_model_file_is_refused_in_one_sentence(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(EngineError, match="is broken or not supported"):
        await LlamaCppEngine(broken).start(lambda percent: None)
