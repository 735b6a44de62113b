"""Threads that spin while they wait must not let two busy neighbours stop the model."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from inference.engines.base import Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from tests.contract.conftest import model_file

pytestmark = [pytest.mark.real_model, pytest.mark.slow]


@contextmanager
def busy(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


async def speed(engine: LlamaCppEngine, seconds: float) -> float:
    """Tokens per second of one answer, after its first second."""
    request = Request((Turn("user", "Count."),), Sampling(max_tokens=1900, logit_bias=NEVER_END))
    started, counted = time.monotonic(), 0
    async for delta in engine.generate(request):
        elapsed = time.monotonic() - started
        counted += len(delta.token_ids) if elapsed > 1 else 0
        if elapsed > 1 + seconds:
            break
    return counted / seconds


NEVER_END = ((0, -100.0), (2, -100.0))


async def test_two_busy_neighbours_cost_no_more_than_their_share():
    """Fair would be half of the machine; threads that spin for each other get a hundredth."""
    engine = LlamaCppEngine(model_file(), slots=2, context_tokens=2048, threads=2)
    await engine.start(lambda percent: None)
    try:
        alone = await speed(engine, 3)
        with busy(2):
            await asyncio.sleep(0.2)
            beside = await speed(engine, 5)
    finally:
        await engine.stop()
    assert beside > alone / 6
