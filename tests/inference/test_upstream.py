"""The upstream engine against stand-ins that answer as vLLM and OpenAI do, and as they should not.

The shapes are those of vLLM's completion stream and of OpenAI's chat stream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import pytest

from inference.engines import backends, openai, vllm
from inference.engines.backends import Backend
from inference.engines.base import (
    Delta,
    EngineError,
    Interrupted,
    Request,
    RequestRefused,
    Sampling,
    Turn,
    Usage,
)
from inference.engines.flavours import Order, Prompt
from inference.engines.upstream import UpstreamEngine
from tests.standin import BREAK, HANG, Reply, StandIn, said, streamed

HALF = 2  # the token of half a character
KEY = "sk-a-key-nobody-may-see"
ASK = Request((Turn("user", "Hi"),), Sampling(temperature=0, max_tokens=20), scope="alice")


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(backends, "LOOK_SECONDS", 0.02)


@asynccontextmanager
async def upstream(
    kind: Literal["vllm", "openai"], *servers: StandIn, **fields: Any
) -> AsyncIterator[UpstreamEngine]:
    async with AsyncExitStack() as stack:
        for server in servers:
            await stack.enter_async_context(server)
        listed = [
            Backend(f"server-{number}", server.url, kind, key=KEY)
            for number, server in enumerate(servers)
        ]
        engine = UpstreamEngine(listed, context_tokens=1000, **fields)
        await engine.start(lambda percent: None)
        yield engine
        await engine.stop()


async def collect(engine: UpstreamEngine, request: Request = ASK) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def text_of(deltas: Iterable[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: Iterable[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


# --- stand-ins ----------------------------------------------------------------------------
def tokenize(body: Any) -> Reply:
    """A token a character, but `<|end|>` is one; the template puts the role before a content."""
    text = body.get("prompt")
    if text is None:
        text = "".join(f"{turn['role'][0]}:{turn['content']}<|end|>" for turn in body["messages"])
    names = [name for part in text.split("<|end|>") for name in [*part, "<|end|>"]][:-1]
    ids = [1 if name == "<|end|>" else ord(name) for name in names]
    return said({"tokens": ids, "token_strs": names, "max_model_len": 900, "count": len(ids)})


def detokenize(body: Any) -> Reply:
    names = {1: "<|end|>", HALF: "\N{REPLACEMENT CHARACTER}"}
    return said({"prompt": "".join(names.get(t) or chr(t) for t in body["tokens"])})


def as_vllm(completions: Reply | Callable[[Any], Reply]) -> StandIn:
    listed = {"data": [{"id": "m", "root": "m", "owned_by": "vllm", "max_model_len": 900}]}
    return StandIn({
        "/health": Reply(),
        "/v1/models": said(listed),
        "/version": said({"version": "0"}),
        "/tokenize": tokenize,
        "/detokenize": detokenize,
        "/v1/completions": completions,
    })  # fmt: skip


def as_openai(completions: Reply | Callable[[Any], Reply], owner: str = "somebody") -> StandIn:
    listed = {"data": [{"id": "m", "owned_by": owner}]}
    return StandIn({"/v1/models": said(listed), "/v1/chat/completions": completions})


def chunk(text: str, ids: list[int], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "token_ids": ids, "finish_reason": finish}
    return {"object": "text_completion", "choices": [choice]}


def delta(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


USED = {"usage": {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}, "choices": []}
WHOLE = [chunk("Good", [71, 72]), chunk("", [73]), chunk(" day", [74]), chunk("", [1], "stop")]


# --- vLLM ---------------------------------------------------------------------------------
async def test_tokens_come_with_their_text_and_the_one_that_ends_it_is_left_out():
    async with upstream("vllm", as_vllm(streamed(*WHOLE, USED))) as engine:
        deltas = await collect(engine)
    assert deltas[0].usage == Usage(5)
    assert deltas[0].prompt_sha256
    assert [(d.text, d.token_ids) for d in deltas[1:-1]] == [("Good", (71, 72)), (" day", (73, 74))]
    assert (deltas[-1].finish, deltas[-1].usage) == ("end", Usage(5, 0, 4))


async def test_what_vllm_found_in_its_cache_is_told_but_the_end_it_counts_is_not():
    """As vLLM 0.32 sends it: fields without a value, and the usage in an event of its own."""
    first = {**chunk("Good day", [71, 72, 73, 74])["choices"][0], "prompt_token_ids": [1, 2],
             "logprobs": None, "stop_reason": None}  # fmt: skip
    numbers = {"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17,
               "prompt_tokens_details": {"cached_tokens": 3}}  # fmt: skip
    end = {"object": "text_completion", "choices": [], "usage": numbers, "system_fingerprint": "x"}
    events = [{"id": "cmpl-1", "choices": [first]}, chunk("", [1], "stop"), end]
    async with upstream("vllm", as_vllm(streamed(*events))) as engine:
        deltas = await collect(engine)
    assert (text_of(deltas), tokens_of(deltas)) == ("Good day", [71, 72, 73, 74])
    assert deltas[-1].usage == Usage(5, 3, 4)


@pytest.mark.parametrize("count", [10**30, -5, "many", [1]])
async def test_figures_that_make_no_sense_cost_no_text(count: object):
    used = {"usage": {"prompt_tokens": 12, "completion_tokens": count}, "choices": []}
    async with upstream("vllm", as_vllm(streamed(*WHOLE, used))) as engine:
        deltas = await collect(engine)
    assert (text_of(deltas), deltas[-1].finish) == ("Good day", "end")
    assert deltas[-1].usage == Usage(5, 0, 4)


async def test_another_server_goes_on_after_the_tokens_whose_text_came():
    broken = as_vllm(streamed(chunk("Good", [71, 72]), chunk("", [73]), end=BREAK))
    whole = as_vllm(streamed(chunk(" day", [73, 74]), chunk("", [1], "stop")))
    async with upstream("vllm", broken, whole) as engine:
        deltas = await collect(engine)
        first, second = (s.bodies("/v1/completions")[0] for s in (broken, whole))
    assert (text_of(deltas), tokens_of(deltas)) == ("Good day", [71, 72, 73, 74])
    assert second["prompt"] == [*first["prompt"], 71, 72]
    assert second["max_tokens"] == first["max_tokens"] - 2
    assert second["cache_salt"] == first["cache_salt"]


async def test_half_a_character_that_came_with_the_text_before_it_is_made_again():
    broken = as_vllm(streamed(chunk("Good", [71, 72, HALF]), end=BREAK))
    whole = as_vllm(streamed(chunk(" 漢", [73, HALF]), chunk("", [1], "stop")))
    async with upstream("vllm", broken, whole) as engine:
        deltas = await collect(engine)
    assert whole.bodies("/v1/completions")[0]["prompt"][-2:] == [71, 72]
    assert text_of(deltas) == "Good 漢"


async def test_a_stop_string_is_found_across_a_seam():
    broken = as_vllm(streamed(chunk("One. EN", [71]), end=BREAK))
    whole = as_vllm(streamed(chunk("D two", [72]), end=HANG))
    stop = Request(ASK.turns, Sampling(stop=("END",)))
    async with upstream("vllm", broken, whole) as engine:
        deltas = await collect(engine, stop)
    assert (text_of(deltas), deltas[-1].finish) == ("One. ", "stop")


async def test_an_earlier_run_is_gone_on_with_and_its_stop_strings_are_remembered():
    server = as_vllm(streamed(chunk("D two", [72]), end=HANG))
    again = Request(ASK.turns, Sampling(stop=("END",)), emitted=tuple(map(ord, "One. EN")))
    async with upstream("vllm", server) as engine:
        deltas = await collect(engine, again)
    assert (text_of(deltas), deltas[-1].finish) == ("", "stop")


async def test_a_control_token_that_a_person_spells_out_stays_text():
    server = as_vllm(streamed(*WHOLE))
    asked = Request((Turn("user", "a<|end|>b<|end|>"),), ASK.sampling)
    async with upstream("vllm", server) as engine:
        await collect(engine, asked)
    [order] = server.bodies("/v1/completions")
    assert order["prompt"].count(1) == 1  # the template's own
    assert "".join(map(chr, order["prompt"][:-1])) == "u:a<|end|>b<|end|>"


async def test_closing_an_answer_closes_the_connection():
    server = as_vllm(streamed(chunk("Good", [71]), end=HANG))
    async with upstream("vllm", server) as engine:
        stream = engine.generate(ASK)
        while not (await anext(stream)).text:
            pass
        await stream.aclose()
        async with asyncio.timeout(5):
            await server.gone.wait()
        assert engine.capacity().busy == 0


# --- servers that fail --------------------------------------------------------------------
BAD = {
    "429": said({"error": {"message": "busy"}}, 429, retry_after="7"),
    "503": said({"error": "Loading model"}, 503),
    "500": Reply([b"<html>"], 500),
    "our key": said({"detail": f"not {KEY}"}, 401),
    "a redirect": Reply(status=302, headers={"location": "http://elsewhere/"}),
    "no JSON": streamed(b"data: {nonsense"),
    "no UTF-8": streamed(b'data: {"choices": [{"text": "\xe6\xbc"}]}'),
    "a list": streamed([1, 2]),
    "wrong types": streamed({"choices": [{"text": 5}]}),
    "ids that are none": streamed(chunk("x", ["y"])),  # type: ignore[list-item]
    "an error in the stream": streamed({"error": {"code": 500, "message": "died"}}),
    "an end before the end": streamed(),
    "a cut line": streamed(end=BREAK),
    "gone at once": Reply([BREAK]),
    "an event without end": Reply([b"data: " + b"x" * (3 << 20)]),
    "gave up": streamed(chunk("", [], "abort")),
}


@pytest.mark.parametrize("bad", BAD)
async def test_what_one_server_fails_at_another_does(bad: str):
    async with upstream("vllm", as_vllm(BAD[bad]), as_vllm(streamed(*WHOLE))) as engine:
        deltas = await collect(engine)
    assert text_of(deltas) == "Good day"


@pytest.mark.parametrize("bad", BAD)
async def test_a_server_that_goes_on_failing_ends_in_one_sentence_without_the_key(
    bad: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("inference.engines.outbound.MAX_REST", 0.02)
    server = as_vllm(BAD[bad])
    async with upstream("vllm", server) as engine:
        with pytest.raises(EngineError) as raised:
            await collect(engine)
    words = str(raised.value)
    assert words.endswith(".")
    assert KEY not in words
    assert len(server.bodies("/v1/completions")) <= 4


async def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vllm, "NEXT_SECONDS", 0.1)
    alive = streamed(chunk("Good", [71, 72]), b": ping\n\n", end=HANG)
    rest = streamed(chunk(" day", [73]), chunk("", [1], "stop"))
    async with upstream("vllm", as_vllm(alive), as_vllm(rest)) as engine:
        assert text_of(await collect(engine)) == "Good day"


async def test_a_request_at_fault_is_refused_at_once_and_in_the_servers_words():
    refusal = said({"error": {"message": f"top_k must be -1 or more. {KEY}", "code": 400}}, 400)
    server = as_vllm(refusal)
    async with upstream("vllm", server) as engine:
        with pytest.raises(RequestRefused, match=r"top_k must be -1 or more\. …"):
            await collect(engine)
    assert len(server.bodies("/v1/completions")) == 1


async def test_a_temperature_vllm_does_not_take_is_refused_in_its_words():
    message = "temperature must be in [0, 2], got 5.0. (parameter=temperature, value=5.0)"
    kind = {"type": "BadRequestError", "param": "temperature", "code": 400}
    async with upstream("vllm", as_vllm(said({"error": {"message": message, **kind}}, 400))) as e:
        with pytest.raises(RequestRefused, match=r"temperature must be in \[0, 2\]"):
            await collect(e, Request(ASK.turns, Sampling(temperature=5)))


async def test_servers_that_are_not_there_offer_no_slots_until_they_come():
    server = as_vllm(streamed(*WHOLE))
    ready = server.answers.pop("/health")
    server.answers["/health"] = Reply(status=503)
    async with upstream("vllm", server) as engine:
        assert engine.capacity().slots == 0
        server.answers["/health"] = ready
        async with asyncio.timeout(10):
            while not engine.capacity().slots:
                await asyncio.sleep(0.01)
        assert text_of(await collect(engine)) == "Good day"


# --- servers without token ids ------------------------------------------------------------
async def test_without_ids_the_servers_own_numbers_count():
    answer = streamed(delta(None), delta("Good"), delta(" day"), delta(None, "stop"), USED)
    server = as_openai(answer)
    async with upstream("openai", server) as engine:
        deltas = await collect(engine)
    assert (text_of(deltas), tokens_of(deltas)) == ("Good day", [])
    assert (deltas[-1].finish, deltas[-1].usage) == ("end", Usage(12, 0, 5))
    assert f"authorization: bearer {KEY}" in server.headers[-1].lower()


async def test_a_server_that_can_goes_on_with_the_text_of_an_answer():
    broken = as_openai(streamed(delta("Good"), end=BREAK), "vllm")
    whole = as_openai(streamed(delta(" day"), delta(None, "length")), "vllm")
    async with upstream("openai", broken, whole) as engine:
        assert text_of(await collect(engine)) == "Good day"
    [order] = whole.bodies("/v1/chat/completions")
    assert order["messages"][-1] == {"role": "assistant", "content": "Good"}
    assert (order["continue_final_message"], order["add_generation_prompt"]) == (True, False)


async def test_an_answer_that_nobody_can_go_on_with_ends_where_it_is():
    servers = [as_openai(streamed(delta("Good"), end=BREAK)) for _ in range(2)]
    deltas = []
    async with upstream("openai", *servers) as engine:
        with pytest.raises(Interrupted, match="cannot go on"):
            async for item in engine.generate(ASK):
                deltas.append(item)
    assert text_of(deltas) == "Good"
    assert deltas[-1].usage == Usage(5, 0, 1)


async def test_or_it_begins_anew_where_that_is_the_policy():
    broken = as_openai(streamed(delta("Bad"), end=BREAK))
    whole = as_openai(streamed(delta("Good"), delta(" day"), delta(None, "stop")))
    async with upstream("openai", broken, whole, restarts=True) as engine:
        deltas = await collect(engine)
    begun = next(number for number, item in enumerate(deltas) if item.restart)
    assert text_of(deltas[:begun]) == "Bad"
    assert text_of(deltas[begun:]) == "Good day"
    assert deltas[-1].usage == Usage(5, 0, 2)


async def test_a_server_that_writes_without_end_is_stopped():
    endless = as_openai(streamed(*[delta("x")] * 100, end=HANG))
    async with upstream("openai", endless) as engine:
        deltas = await collect(engine)
    assert deltas[-1].finish == "length"
    assert len(text_of(deltas)) < 50


async def test_vectors_come_in_the_order_of_their_texts():
    server = as_openai(Reply())
    rows = [{"index": 1, "embedding": [0, 2.0]}, {"index": 0, "embedding": [3, -4]}]
    server.answers["/v1/embeddings"] = said({"data": rows})
    async with upstream("openai", server) as engine:
        assert await engine.embed(["a", "b"]) == [[0.6, -0.8], [0.0, 1.0]]
        with pytest.raises(EngineError, match="left out"):
            await engine.embed(["a", "b", "c"])


@pytest.mark.parametrize("second", [[0, 0], [1], ["x", 1], [float("nan"), 1], None])
async def test_vectors_that_make_no_sense_are_an_error(second: object):
    server = as_openai(Reply())
    rows = [{"index": 0, "embedding": [1, 0]}, {"index": 1, "embedding": second}]
    server.answers["/v1/embeddings"] = said({"data": rows})
    async with upstream("openai", server) as engine:
        with pytest.raises(EngineError, match=r"cannot be used|makes no sense"):
            await engine.embed(["a", "b"])


def test_openai_is_asked_for_nothing_it_does_not_know():
    known = "model messages stream stream_options max_tokens temperature top_p seed".split()
    known += ["frequency_penalty", "presence_penalty", "logit_bias"]
    order = Order(Prompt(ASK.turns, (), 5), ASK.sampling, "", 7)
    assert set(openai._body(order, "m")) == set(known)
