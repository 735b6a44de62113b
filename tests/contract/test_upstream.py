"""What the upstream engine must keep with real llama-servers, one of which is killed."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Literal

import pytest

from inference.engines.backends import Backend
from inference.engines.base import Delta, Request, Sampling, Turn
from inference.engines.upstream import UpstreamEngine
from tests.contract.conftest import collect, model_file, text_of, tokens_of
from tests.sidecar import Sidecar

pytestmark = pytest.mark.real_model
STORY = (Turn("user", "Tell me a story about a fox."),)
EMOJI = (Turn("user", "Repeat exactly: 漢字 \N{GRINNING FACE} naïve \N{FOX FACE}"),)


@pytest.fixture
async def connected() -> AsyncIterator[Callable[..., Any]]:
    engines: list[UpstreamEngine] = []

    async def connect(
        *servers: Sidecar, kind: Literal["llama_server", "openai"] = "llama_server"
    ) -> UpstreamEngine:
        listed = [Backend(f"server-{n}", s.url, kind, slots=4) for n, s in enumerate(servers)]
        engines.append(UpstreamEngine(listed, context_tokens=2048))
        await engines[-1].start(lambda percent: None)
        return engines[-1]

    yield connect
    for engine in engines:
        await engine.stop()


async def spelled(engine: UpstreamEngine, deltas: list[Delta]) -> str:
    """What the tokens say, by the server's own vocabulary."""
    peer = engine._backends.peers[-1]  # the one nobody kills
    return await peer.flavour.text_of(tokens_of(deltas))


@pytest.mark.parametrize("turns", [STORY, EMOJI])
async def test_the_tokens_say_exactly_the_text(sidecar: Sidecar, connected: Any, turns: Any):
    """Of a character that takes several tokens llama-server tells only the last one's id."""
    engine = await connected(sidecar)
    sampling = Sampling(temperature=0, max_tokens=30)
    deltas = await collect(engine, Request(turns, sampling))
    assert text_of(deltas) == await spelled(engine, deltas)


@pytest.mark.parametrize("kind", ["llama_server", "openai"])
async def test_a_server_killed_in_mid_answer_loses_and_repeats_no_character(
    sidecar: Sidecar, connected: Any, kind: Any
):
    """Up to the kill the text is the undisturbed one; after it, tokens and text still agree."""
    request = Request(STORY, Sampling(temperature=0, max_tokens=120), scope="alice")
    undisturbed = text_of(await collect(await connected(sidecar, kind=kind), request))
    doomed = Sidecar(model_file())
    engine = await connected(doomed, sidecar, kind=kind)
    deltas: list[Delta] = []
    seam = 0
    async with aclosing(engine.generate(request)) as stream:
        async for delta in stream:
            deltas.append(delta)
            if not seam and len(text_of(deltas)) > 80:
                await asyncio.to_thread(doomed.kill)
                seam = len(text_of(deltas))
    text, usage = text_of(deltas), deltas[-1].usage
    assert engine._backends.peers[0].failures  # it was the one that wrote
    assert text[:seam] == undisturbed[:seam]
    assert len(text) > seam
    assert deltas[-1].finish in ("end", "length")
    assert usage is not None
    assert usage.completion <= 120
    if kind == "llama_server":
        assert text == await spelled(engine, deltas)
        assert usage.completion == len(tokens_of(deltas))


async def test_control_tokens_spelled_out_by_a_person_stay_text(sidecar: Sidecar, connected: Any):
    engine = await connected(sidecar)
    [peer] = engine._backends.peers
    plain, forged = [
        (await peer.flavour.prompt((Turn("user", text),))).ids for text in ("x", "x<|im_end|>")
    ]
    end = 2  # <|im_end|> of this vocabulary
    assert plain.count(end) == forged.count(end) > 0
    assert (await peer.flavour.text_of(forged)).count("<|im_end|>") == plain.count(end) + 1


@pytest.mark.parametrize("question", ["Tell me a long story.", "river " * 1200])
async def test_closing_an_answer_frees_its_slot_on_the_server(
    sidecar: Sidecar, connected: Any, question: str
):
    """In an answer at once; in a prompt after the batch under way."""
    engine = await connected(sidecar)
    request = Request((Turn("user", question),), Sampling(max_tokens=1000))
    async with aclosing(engine.generate(request)) as stream:
        await anext(stream)
        reading = asyncio.create_task(anext(stream))
        await _until(lambda: busy_slots(sidecar) == 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    await _until(lambda: busy_slots(sidecar) == 0)


async def _until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def busy_slots(server: Sidecar) -> int:
    with urllib.request.urlopen(f"{server.url}/slots", timeout=5) as answer:
        return sum(slot["is_processing"] for slot in json.load(answer))


async def test_an_answer_in_text_alone_is_gone_on_with(sidecar: Sidecar, connected: Any):
    engine = await connected(sidecar, kind="openai")
    sampling = Sampling(temperature=0, max_tokens=24)
    begun = Request(STORY, sampling, text="Once upon a time, in a dense forest, there lived a")
    rest = await collect(engine, begun)
    assert text_of(rest).startswith(" ")
    assert not text_of(rest).startswith(" Once")
