"""Stop: how soon it is acknowledged and how soon the engine's slot is free.

python -m bench.stop [runs]: over HTTP for the acknowledgement and the end people see; in the
engine for the slot, in mid-answer and in the middle of a long prompt.
"""

import asyncio
import contextlib
import sys
import time
from statistics import median

from bench.record import record
from bench.site import MODELS, Person, Site, site, watch
from inference.catalogue import CATALOGUE
from inference.engines.base import Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine


async def through_the_site(running: Site, runs: int) -> dict[str, float]:
    person = await Person(running).arrive()
    acknowledged, ended = [], []
    async with person.socket() as socket:
        for _ in range(runs):
            generation = await person.ask("Tell me a very long story about the sea.")
            async for frame in watch(socket, generation):
                if frame["type"] == "delta" and frame["seq"] == 5:
                    asked = time.perf_counter()
                    await person.stop(generation)
                    acknowledged.append(time.perf_counter() - asked)
            ended.append(time.perf_counter() - asked)
    return {
        "acknowledged, median ms": round(median(acknowledged) * 1000, 1),
        "acknowledged, limit ms": 50.0,
        "end on the socket, median ms": round(median(ended) * 1000, 1),
        "end on the socket, worst ms": round(max(ended) * 1000, 1),
    }


async def in_the_engine(prompt: str, runs: int) -> list[float]:
    entry = CATALOGUE["smollm2-135m-instruct"]
    engine = LlamaCppEngine(MODELS / entry.file_name, slots=2, context_tokens=2048)
    await engine.start(lambda percent: None)
    times = []
    for _ in range(runs):
        request = Request((Turn("user", prompt),), Sampling(max_tokens=300))
        async with contextlib.aclosing(engine.generate(request)) as stream:
            await anext(stream)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.4):
                    async for _ in stream:
                        pass
            stopped = time.perf_counter()
        while engine.capacity().busy:
            await asyncio.sleep(0.001)
        times.append(time.perf_counter() - stopped)
    await engine.stop()
    return times


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with site("smollm2-135m-instruct") as running:
        figures = asyncio.run(through_the_site(running, runs))
    for where, prompt in {"answer": "Tell me a story.", "prompt": "river mountain " * 700}.items():
        times = asyncio.run(in_the_engine(prompt, runs))
        figures[f"slot free, mid-{where}, median ms"] = round(median(times) * 1000, 1)
        figures[f"slot free, mid-{where}, worst ms"] = round(max(times) * 1000, 1)
    figures["slot free, limit ms"] = 300.0
    record("stop", figures, f"{runs} runs each, the real model, one stream")


if __name__ == "__main__":
    main()
