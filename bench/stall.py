"""How long a 1,500-token prompt holds up eight running answers, in steps of theirs.

python -m bench.stall [runs]: the engine in this process, the real model.
"""

import asyncio
import sys
import time
from itertools import pairwise
from statistics import median, quantiles

from bench.record import record
from bench.site import MODELS
from inference.catalogue import CATALOGUE
from inference.engines.base import Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine

STREAMS = 8


async def stream(engine: LlamaCppEngine, number: int, arrivals: list[float]) -> None:
    sampling = Sampling(max_tokens=160, seed=number, temperature=0.9)
    question = Turn("user", f"Tell me a very long story about the number {number}.")
    async for delta in engine.generate(Request((question,), sampling)):
        if delta.token_ids:
            arrivals.append(time.perf_counter())


async def long_prompt(engine: LlamaCppEngine) -> tuple[float, float]:
    """When a prompt of about 1,500 tokens is sent, and when its first token comes."""
    words = Turn("user", "river mountain garden " * 495)
    started = time.perf_counter()
    async for delta in engine.generate(Request((words,), Sampling(max_tokens=1))):
        if delta.token_ids:
            break
    return started, time.perf_counter()


def gaps(arrivals: list[float], start: float, end: float) -> list[float]:
    inside = [moment for moment in arrivals if start <= moment <= end]
    return [b - a for a, b in pairwise(inside)]


async def once(engine: LlamaCppEngine) -> tuple[float, float, float, float]:
    arrivals: list[list[float]] = [[] for _ in range(STREAMS)]
    tasks = [asyncio.create_task(stream(engine, n, a)) for n, a in enumerate(arrivals)]
    while min(map(len, arrivals)) < 15:
        await asyncio.sleep(0.02)
    start, end = await long_prompt(engine)
    await asyncio.gather(*tasks)
    steps = [gap for a in arrivals for gap in gaps(a, a[2], start)]
    stalls = [gap for a in arrivals for gap in gaps(a, start, end)]
    ninety_nine = quantiles(stalls, n=100)[98]
    return median(steps), median(stalls), ninety_nine, end - start


async def measure(runs: int) -> dict[str, float]:
    entry = CATALOGUE["smollm2-135m-instruct"]
    engine = LlamaCppEngine(MODELS / entry.file_name, slots=STREAMS + 1, context_tokens=2048)
    await engine.start(lambda percent: None)
    found = [await once(engine) for _ in range(runs)]
    await engine.stop()
    step, stall, worst, prompt = (median(column) for column in zip(*found, strict=True))
    return {
        "step of eight streams, median ms": round(step * 1000, 1),
        "while a 1,500-token prompt is read, median ms": round(stall * 1000, 1),
        "the same, p99 ms": round(worst * 1000, 1),
        "ratio, median": round(stall / step, 2),
        "ratio, p99": round(worst / step, 2),
        "limit, steps": 3.0,
        "the long prompt's own first token, s": round(prompt, 1),
    }


if __name__ == "__main__":
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    record("stall", asyncio.run(measure(runs)), f"median of {runs} runs, threads measured at start")
