"""What choosing a token costs, with and without a JSON schema, at 1, 8 and 16 streams.

python -m bench.sampling: the engine in this process, the real model, default sampling.
"""

import asyncio
import time
from statistics import mean, median
from typing import ClassVar

from bench.record import record
from bench.site import MODELS
from inference.catalogue import CATALOGUE
from inference.engines.base import Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.sampler import Logits, Sampler

PEOPLE = (
    '{"type":"array","minItems":3,"items":{"type":"object","required":["name","age","city"],'
    '"properties":{"name":{"type":"string","maxLength":40},"age":{"type":"integer","minimum":0,'
    '"maximum":120},"city":{"enum":["Paris","Rome","Oslo"]}}}}'
)
TOKENS = 80


class Timed(Sampler):
    """Notes how long each choice and its acceptance took."""

    seconds: ClassVar[list[float]] = []

    def choose(self, logits: Logits) -> int:
        started = time.perf_counter()
        token = super().choose(logits)
        self.seconds.append(time.perf_counter() - started)
        return token

    def accept(self, token: int) -> None:
        started = time.perf_counter()
        super().accept(token)
        if self.seconds:
            self.seconds[-1] += time.perf_counter() - started


async def stream(engine: LlamaCppEngine, number: int, schema: str) -> None:
    sampling = Sampling(seed=number, max_tokens=TOKENS, json_schema=schema)
    question = Turn("user", f"Describe {number + 3} people in JSON.")
    async for _ in engine.generate(Request((question,), sampling)):
        pass


async def measure() -> dict[str, float]:
    figures: dict[str, float] = {}
    file = MODELS / CATALOGUE["smollm2-135m-instruct"].file_name
    engine = LlamaCppEngine(file, slots=16, context_tokens=512)
    await engine.start(lambda percent: None)
    await stream(engine, 0, PEOPLE)
    for streams in (1, 8, 16):
        for name, schema in (("plain", ""), ("schema", PEOPLE)):
            Timed.seconds = []
            await asyncio.gather(*(stream(engine, number, schema) for number in range(streams)))
            label = f"{name}, {streams} streams, µs a token"
            figures[f"{label}, median"] = round(median(Timed.seconds) * 1e6)
            figures[f"{label}, mean"] = round(mean(Timed.seconds) * 1e6)
    await engine.stop()
    return figures


def main() -> None:
    from inference.engines import llama_cpp

    llama_cpp.Sampler = Timed  # type: ignore[misc]
    record("sampling", asyncio.run(measure()), "default sampling; seconds of the decode thread")


if __name__ == "__main__":
    main()
