"""Tokens a second, all streams together: our engine in this process beside vLLM on this CPU.

python -m bench.vllm --model FILE [--also FILE] [--rounds 3] [--streams 1,2,4,8,16]

Pairs of rounds, whose order turns about: the same conversations, sampling, threads and number of
tokens (what ends an answer is biased away), from the first request to the last token. vLLM gets
token ids and is stopped (SIGSTOP) while it is not its turn. --also: another file of the same
model, as a note. --dtype float32: what vLLM does where the processor has no bfloat16.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench.record import record
from bench.site import MODELS
from inference.catalogue import CATALOGUE
from inference.engines.base import Request, Sampling, Turn
from inference.engines.flavours import Order, Prompt
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.outbound import Server
from inference.engines.vllm import Vllm, _body
from tests.vllm.server import VllmServer

TOKENS = 128
CONTEXT = 512
LIMIT = 1.6
ENDS = ((0, -100.0), (2, -100.0))  # <|endoftext|> and <|im_end|> of this vocabulary
SUBJECTS = (
    "the garden behind my grandmother's house", "a train that stands still in the snow",
    "the first day at a new school", "learning to bake bread", "a walk along the harbour",
    "an old radio that still works", "the history of my small town", "keeping bees on a roof",
    "a night without electricity", "a letter that came too late", "planting apple trees",
    "a bicycle tour through the hills", "the lighthouse on the island", "a market in the rain",
    "the neighbour's curious cat", "how to mend a wooden chair",
)  # fmt: skip
Run = Callable[[int, int], Awaitable[int]]


def conversation(number: int) -> tuple[Turn, ...]:
    """About 200 tokens that no other stream begins with."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    return (
        Turn("user", f"I want to write about {subject}. What should I think of before I start?"),
        Turn(
            "assistant",
            f"Before you write about {subject}, ask yourself three things. Who is going to read "
            "it, and what do they know already? What did you see, hear and smell there? And what "
            "has changed since then? Begin with one small scene instead of an explanation, keep "
            "the sentences short, and leave out everything that you would not tell a friend. You "
            "can always add more later, when you have read it aloud to somebody once.",
        ),
        Turn(
            "user",
            "Thank you, that helps a lot. I have one page and two evenings for it, and my readers "
            f"are about twelve years old. Please write the beginning about {subject} for me, with "
            "one scene, some dialogue and a sentence at the end that makes them want to go on.",
        ),
    )


def sampling(seed: int) -> Sampling:
    return Sampling(
        temperature=0.6, top_p=0.9, repeat_penalty=1.1, logit_bias=ENDS, seed=seed,
        max_tokens=TOKENS,
    )  # fmt: skip


class Ours:
    def __init__(self, file: Path, streams: int, threads: int) -> None:
        self.engine = LlamaCppEngine(file, slots=streams, context_tokens=CONTEXT, threads=threads)

    async def run(self, number: int, seed: int) -> int:
        count = 0
        async for delta in self.engine.generate(Request(conversation(number), sampling(seed))):
            count += len(delta.token_ids)
        return count


class Theirs:
    """Its prompts are prepared beforehand, and are never found in its cache."""

    def __init__(self, server: VllmServer) -> None:
        self.server = server
        self.http = httpx.AsyncClient(base_url=server.url, timeout=None)
        self.prompts: list[Prompt] = []

    async def prepare(self, streams: int) -> None:
        line = Server(self.server.url)
        flavour = Vllm(line, "smollm2")
        self.prompts = [await flavour.prompt(conversation(number)) for number in range(streams)]
        await line.close()

    async def run(self, number: int, seed: int) -> int:
        order = Order(self.prompts[number], sampling(seed), "", TOKENS)
        count = 0
        async with self.http.stream(
            "POST", "/v1/completions", json=_body(order, "smollm2")
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    count += sum(len(choice["token_ids"]) for choice in choices)
        return count


async def speed(run: Run, streams: int, seed: int) -> float:
    started = time.perf_counter()
    counts = await asyncio.gather(*(run(number, seed + number) for number in range(streams)))
    assert counts == [TOKENS] * streams, counts
    return sum(counts) / (time.perf_counter() - started)


async def pair(ours: Ours, theirs: Theirs, streams: int, number: int) -> tuple[float, float]:
    async def our_turn() -> float:
        return await speed(ours.run, streams, number * 100)

    async def their_turn() -> float:
        theirs.server.resume()
        found = await speed(theirs.run, streams, number * 100)
        theirs.server.pause()
        return found

    if number % 2:
        them = await their_turn()
        return await our_turn(), them
    us = await our_turn()
    return us, await their_turn()


async def beside(
    file: Path, theirs: Theirs, asked: argparse.Namespace
) -> dict[str, float | list[float]]:
    """Our engine with this file, paired with vLLM at each number of streams."""
    ours = Ours(file, max(asked.streams), asked.threads)
    await ours.engine.start(lambda percent: None)
    figures: dict[str, float | list[float]] = {}
    for streams in asked.streams:
        pairs = [await pair(ours, theirs, streams, number) for number in range(asked.rounds)]
        label = f"{file.stem}, {streams} streams"
        figures[f"{label}, ours, tokens/s"] = round(median(us for us, _ in pairs), 1)
        figures[f"{label}, vLLM, tokens/s"] = round(median(them for _, them in pairs), 1)
        figures[f"{label}, ratio"] = round(median(us / them for us, them in pairs), 2)
        print(f"{label}: {pairs}", flush=True)
    await ours.engine.stop()
    return figures


async def measure(server: VllmServer, asked: argparse.Namespace) -> dict[str, Any]:
    theirs = Theirs(server)
    await theirs.prepare(max(asked.streams))
    await theirs.run(0, 0)  # what it compiles for a first answer
    figures: dict[str, Any] = {"limit, ratio": LIMIT}
    server.pause()
    for file in filter(None, (asked.model, asked.also)):
        figures |= await beside(file, theirs, asked)
    figures["prompt, tokens, median"] = median(prompt.tokens for prompt in theirs.prompts)
    figures["vLLM ready after, s"] = round(server.ready_seconds)
    figures["vLLM, memory of its processes, MB"] = server.memory() // 1_000_000
    server.resume()
    await theirs.http.aclose()
    return figures


def numbers(text: str) -> Sequence[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser()
    default = MODELS / CATALOGUE["smollm2-135m-instruct"].file_name
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--also", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=numbers, default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="bfloat16")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    server = VllmServer(
        slots=max(asked.streams), context_tokens=CONTEXT, threads=asked.threads,
        dtype=asked.dtype, compiles=True,
    )  # fmt: skip
    try:
        figures = asyncio.run(measure(server, asked))
    finally:
        server.resume()
        server.close()
    note = f"median of {asked.rounds} pairs, {asked.threads} threads each, vLLM in {asked.dtype}"
    note += f"; load of the machine before: {load:.1f}"
    name = "vllm" if asked.dtype == "bfloat16" else f"vllm-{asked.dtype}"
    record(name, figures, note)


if __name__ == "__main__":
    main()
