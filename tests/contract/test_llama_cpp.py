"""What only an engine with a real model can show."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from inference.engines.base import EngineError, Request, Sampling, Turn
from inference.engines.batching import Tempo
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.lookup import Lookup
from inference.engines.template import Segment
from inference.engines.text import TextAssembler
from inference.summary import fit_summarised
from tests.contract.conftest import collect, model_file, tokens_of
from tests.inference.gguf_files import METADATA, gguf

pytestmark = pytest.mark.real_model
NEVER_END = ((0, -100.0), (2, -100.0))


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


async def _cached(engine: LlamaCppEngine, turns: tuple[Turn, ...], scope: str, common: int) -> int:
    request = Request(turns, Sampling(max_tokens=2), scope=scope, common=common)
    usage = (await collect(engine, request))[-1].usage
    assert usage is not None
    return usage.cached


async def test_scopes_share_no_word_that_a_person_wrote(llama: LlamaCppEngine):
    """What the template itself begins with is nobody's secret."""
    short = (Turn("user", "A"),)
    template = await _cached(llama, short, "carol", 0)
    secret = (Turn("user", "A secret question, asked twice by two people, word for word."),)
    await _cached(llama, secret, "alice", 0)
    assert await _cached(llama, secret, "bob", 0) <= max(template, 24)
    assert await _cached(llama, secret, "alice", 0) > 36


async def test_the_operators_system_prompt_is_evaluated_once_for_everybody(llama: LlamaCppEngine):
    system = Turn("system", "You answer in verse, and never say the name of a king. " * 8)
    alice, bob = (Turn("user", "Sing of the sea."), Turn("user", "Tell of the wind."))
    await _cached(llama, (system, alice), "alice", 1)
    assert await _cached(llama, (system, bob), "bob", 1) > 96
    assert await _cached(llama, (system, bob), "carol", 0) <= 24


async def test_a_beginning_is_reused_from_a_run_that_is_still_at_work(llama: LlamaCppEngine):
    opening = Turn("user", "Write about the tides, the moon and the shores of the sea. " * 6)
    sampling = Sampling(temperature=0, max_tokens=24)
    alone = await collect(llama, Request((opening, Turn("user", "Briefly.")), sampling))
    longer = replace(sampling, max_tokens=400, logit_bias=NEVER_END)
    async with aclosing(llama.generate(Request((opening,), longer, scope="one chat"))) as at_work:
        async for delta in at_work:
            if delta.token_ids:
                break
        beside = await collect(
            llama, Request((opening, Turn("user", "Briefly.")), sampling, scope="one chat")
        )
        assert llama.capacity().busy == 1
    assert tokens_of(beside) == tokens_of(alone)
    assert beside[-1].usage
    assert beside[-1].usage.cached > 60


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=0, repeat_penalty=1, max_tokens=60),
    Sampling(temperature=0.6, repeat_penalty=1, seed=5, max_tokens=60),
])  # fmt: skip
async def test_guessing_the_next_tokens_changes_no_token(
    llama: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, sampling: Sampling
):
    text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun."
    request = Request((Turn("user", f"Repeat this text three times: {text} {text}"),), sampling)
    right: list[int] = []
    judge = Lookup.judge

    def watched(lookup: Lookup, guessed: int, found: int) -> None:
        right.append(found)
        judge(lookup, guessed, found)

    monkeypatch.setattr(Lookup, "judge", watched)
    guessed = await collect(llama, request)
    monkeypatch.setattr(Lookup, "guess", lambda self, tokens, most: [])
    assert tokens_of(await collect(llama, request)) == tokens_of(guessed)
    assert sum(right) > 5, "no guess was right: the test shows nothing"


async def test_running_answers_go_on_while_a_long_prompt_is_read(llama: LlamaCppEngine):
    """Generous, and of the median gap: `bench.engine --only stall` has the figures."""
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
    assert median(gaps) <= 8 * step


@pytest.mark.parametrize(
    ("people", "weight"),
    [(("bob", "carol", "dave"), 3), (("bob", "bob", "bob"), 1), (("", "", ""), 3)],
)
async def test_people_who_wait_give_prompts_weight_and_not_how_much_one_of_them_asks(
    llama: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, people: tuple[str, ...], weight: int
):
    weights: list[float] = []
    chunk = Tempo.chunk

    def watched(tempo: Tempo, weight: float = 1.0) -> int:
        weights.append(weight)
        return chunk(tempo, weight)

    monkeypatch.setattr(Tempo, "chunk", watched)
    story = (Turn("user", "Tell me a story."),)
    answer = Request(story, Sampling(logit_bias=NEVER_END), scope="alice")
    async with aclosing(llama.generate(answer)) as at_work:
        async for delta in at_work:
            if delta.token_ids:
                break
        prompts = [
            Request((Turn("user", f"{word} " * 200),), Sampling(max_tokens=1), scope=person)
            for word, person in zip(("river", "lake", "sea"), people, strict=True)
        ]
        await asyncio.gather(*(collect(llama, prompt) for prompt in prompts))
    assert max(weights) == weight


async def test_what_was_read_of_a_stopped_prompt_is_not_read_again_and_changes_nothing(
    llama: LlamaCppEngine,
):
    long = "".join(f"Number {number} is an odd fellow. " for number in range(140))
    sampling = Sampling(temperature=0, max_tokens=8)
    stopped = asyncio.create_task(
        collect(llama, Request((Turn("user", long),), sampling, scope="s"))
    )
    while not any(len(slot.tokens) > 150 for slot in llama._batcher._slots if slot.run):
        assert not stopped.done()
        await asyncio.sleep(0.001)
    stopped.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    again = await collect(llama, Request((Turn("user", long),), sampling, scope="s"))
    anew = await collect(llama, Request((Turn("user", long),), sampling, scope="another"))
    assert tokens_of(again) == tokens_of(anew)
    assert again[-1].usage
    assert again[-1].usage.cached >= 150


async def test_it_summarises_the_part_of_a_conversation_that_it_cannot_hold(llama: LlamaCppEngine):
    told = "I am Ada. I plan a trip to Lisbon in May, to surf and to eat fish. "
    turns = [Turn("user", told * 20), Turn("assistant", "Go to Ericeira. " * 300)]
    turns.append(Turn("user", "Where was I going? " * 60))
    fitted = await fit_summarised(llama, turns, 512, 0, "alice")
    assert fitted is not None
    assert fitted.left_out == 2
    assert [turn.role for turn in fitted.turns] == ["system", "user"]
    assert "Lisbon" in fitted.summary
    assert 0 < fitted.spent.completion <= 120
    assert await llama.count_tokens(fitted.turns) <= 2048 - 512


async def test_a_file_that_is_not_a_model_is_refused_in_one_sentence(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(EngineError, match="is not a model file"):
        await LlamaCppEngine(broken).start(lambda percent: None)


async def test_a_model_of_an_unknown_kind_is_refused_in_one_sentence(tmp_path: Path):
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(gguf(METADATA | {"general.architecture": "nothing"}))
    with pytest.raises(EngineError, match="is broken or not supported"):
        await LlamaCppEngine(unknown).start(lambda percent: None)


async def test_a_truncated_model_file_is_refused_in_one_sentence(tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model_file().read_bytes()[:2000])
    with pytest.raises(EngineError, match="is broken: it ends before its header does"):
        await LlamaCppEngine(broken).start(lambda percent: None)
