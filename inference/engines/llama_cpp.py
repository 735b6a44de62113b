"""llama.cpp in this process: many conversations at once on the CPU (or GPU) of this machine."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path

from inference.engines.base import (
    Capacity,
    Delta,
    EngineError,
    Progress,
    Request,
    RequestRefused,
    Turn,
)
from inference.engines.batching import Batcher, Run, deliver_to
from inference.engines.llama_library import Context, Entry, Weights, build
from inference.engines.sampler import Sampler, Vocabulary
from inference.engines.template import ChatTemplate
from inference.engines.text import TextAssembler

CHUNK = 16  # prompt tokens between two steps of the running answers (docs/architecture.md)


class LlamaCppEngine:
    """`slots` conversations at once, each of up to `context_tokens`.

    threads 0 measures at start how many are fastest here.
    """

    def __init__(
        self, path: Path, *, slots: int = 8, context_tokens: int = 4096, threads: int = 0
    ) -> None:
        self._path = path
        self._slots = slots
        self._context_tokens = context_tokens
        self._threads = threads

    async def start(self, progress: Progress) -> None:
        await asyncio.to_thread(self._load, progress)
        self._batcher.start()

    def _load(self, progress: Progress) -> None:
        progress(0)
        weights = self._weights = Weights(self._path, lambda percent: progress(percent * 9 // 10))
        room = min(self._context_tokens, weights.trained_context)
        context = self._context = Context(weights, self._slots, room, max(CHUNK + 1, self._slots))
        self._vocabulary = Vocabulary(weights.size, weights.piece, weights.ends_answer)
        bos, eos = _special_tokens(weights)
        self._template = ChatTemplate(weights.template_source(), bos, eos)
        self._batcher = Batcher(weights, context, self._slots, CHUNK)
        _time(context, 1, CHUNK)  # the first evaluation also prepares memory
        self._batcher.step_threads = self._threads or fastest(lambda n: _time(context, n, 1))
        self._batcher.chunk_threads = self._threads or fastest(lambda n: _time(context, n, CHUNK))
        progress(100)

    async def stop(self) -> None:
        await asyncio.to_thread(self._batcher.stop)
        self._context.free()
        self._weights.free()

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        prompt, sampler = await asyncio.to_thread(self._prepare, request)
        if len(prompt) >= self._context.tokens:
            raise RequestRefused(
                f"The prompt has {len(prompt)} tokens; this model reads {self._context.tokens}."
            )
        if request.evaluation and sum(map(abs, request.evaluation)) != len(prompt):
            raise EngineError("The prompt is not the one this answer was begun with.")
        queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        text = TextAssembler(self._weights.piece, request.sampling.stop)
        run = Run(request, prompt, deliver_to(queue), text, sampler)
        if not run.has_ended(self._context.tokens):
            self._batcher.submit(run)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise EngineError(str(item)) from item
                yield item
                if item.finish:
                    return
        finally:
            self._batcher.cancel(run)

    def _prepare(self, request: Request) -> tuple[list[int], Sampler]:
        sampler = Sampler(request.sampling, self._vocabulary)
        for token in request.emitted:
            sampler.accept(token)
        return self._tokens(request.turns), sampler

    def _tokens(self, turns: Sequence[Turn]) -> list[int]:
        return self._weights.tokenize(self._template.segments(turns))

    async def count_tokens(self, turns: Sequence[Turn]) -> int:
        return len(await asyncio.to_thread(self._tokens, turns))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise EngineError("This model writes text; it has no embeddings.")

    def capacity(self) -> Capacity:
        return Capacity(self._slots, self._context.tokens, self._batcher.busy)

    def fingerprint(self) -> str:
        template = hashlib.sha256(self._weights.template_source().encode()).hexdigest()[:12]
        return f"{build()} file={self._path.name} template={template} chunk={CHUNK}"

    def seconds_without_progress(self) -> float:
        return self._batcher.seconds_without_progress()


def _special_tokens(weights: Weights) -> tuple[str, str]:
    from llama_cpp import llama_vocab_bos, llama_vocab_eos

    vocabulary = weights.vocabulary
    return (
        weights.special_text(llama_vocab_bos(vocabulary)),
        weights.special_text(llama_vocab_eos(vocabulary)),
    )


def fastest(seconds: Callable[[int], float]) -> int:
    """The number of threads, 1 to all cores by doubling, that took the least time."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    times = {min(1 << power, cores): 0.0 for power in range(6)}
    for count in times:
        times[count] = seconds(count)
    near = 2 * min(times.values())
    for count, first in times.items():
        if first < near:  # a second look at those that may win; the others cost start-up time
            times[count] = min(first, seconds(count))
    return min(times, key=times.__getitem__)


def _time(context: Context, threads: int, batch: int) -> float:
    """One evaluation of a batch in slot 0, which is left empty."""
    context.use_threads(threads)
    started = time.perf_counter()
    context.decode([Entry(token, token, 0, wanted=True) for token in range(batch)])
    context.forget(0, 0)
    return time.perf_counter() - started
