"""llama.cpp in this process: many conversations at once on the CPU (or GPU) of this machine."""

import asyncio
import hashlib
import itertools
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from inference.engines import memory
from inference.engines.base import (
    Capacity,
    Delta,
    EngineError,
    Progress,
    Request,
    RequestRefused,
    Turn,
)
from inference.engines.batching import CHUNK, GUESS_UP_TO, Batcher
from inference.engines.llama_library import Context, Weights, build, processor
from inference.engines.lookup import LONGEST_GUESS
from inference.engines.mail import Mailbox
from inference.engines.runs import Run
from inference.engines.sampler import Sampler, Vocabulary
from inference.engines.template import ChatTemplate, Segment
from inference.engines.text import TextAssembler

log = logging.getLogger(__name__)


class LlamaCppEngine:
    """`slots` conversations at once, each of up to `context_tokens`.

    threads 0 finds out how many are fastest, at start and while it works.
    reproducible: one after the other, and none reuses anything of another, so that an answer
    depends on nothing but its request. With a build that is_exact, it does so in any case.
    """

    def __init__(
        self, path: Path, *, slots: int = 8, context_tokens: int = 4096, threads: int = 0,
        reproducible: bool = False,
    ) -> None:  # fmt: skip
        self._path = path
        self._slots = 1 if reproducible else slots
        self._context_tokens = context_tokens
        self._threads = threads or int(reproducible)
        self._reproducible = reproducible

    async def start(self, progress: Progress) -> None:
        await asyncio.to_thread(self._load, progress)

    def _load(self, progress: Progress) -> None:
        progress(0)
        weights = self._weights = Weights(self._path, lambda percent: progress(percent * 9 // 10))
        room = min(self._context_tokens, weights.trained_context)
        rows = max(CHUNK, self._slots, GUESS_UP_TO * (LONGEST_GUESS + 1))
        before = memory.asked_for()
        context = self._context = Context(weights, self._slots, room, rows)
        self._compare_with_memory(memory.asked_for() - before)
        self._vocabulary = Vocabulary(weights.size, weights.piece, weights.ends_answer)
        bos, eos = _special_tokens(weights)
        self._template = ChatTemplate(weights.template_source(), bos, eos)
        self._batcher = Batcher(weights, context, self._slots, self._threads, self._reproducible)
        self._batcher.start()
        progress(100)

    def _compare_with_memory(self, cache: int) -> None:
        """A cache takes memory as it fills: nothing else would say that it cannot, until it does
        and the system kills somebody."""
        most, there = self._path.stat().st_size + cache, memory.allowed()
        if 0 < there < most:
            log.warning(
                "When %s conversations of %s tokens are under way this model takes %.1f GB of "
                "memory, and there are %.1f GB: lower WORKER_SLOTS or CONTEXT_TOKENS.",
                self._slots, self._context.tokens, most / 1e9, there / 1e9,
            )  # fmt: skip

    async def stop(self) -> None:
        await asyncio.to_thread(self._batcher.stop)
        self._context.free()
        self._weights.free()

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        prompt, shared, sampler = await asyncio.to_thread(self._prepare, request)
        if len(prompt) >= self._context.tokens:
            raise RequestRefused(
                f"The prompt has {len(prompt)} tokens; this model reads {self._context.tokens}."
            )
        box = Mailbox.of_running_loop()
        text = TextAssembler(self._weights.piece, request.sampling.stop)
        run = Run(request, prompt, shared, sampler, box, text)
        if reason := run.ended_by(self._context.tokens):
            yield run.last(reason)
            return
        self._batcher.submit(run)
        try:
            while True:
                item = await box.queue.get()
                if isinstance(item, Exception):
                    raise EngineError(str(item)) from item
                yield item
                if item.finish:
                    return
        finally:
            self._batcher.cancel(run)

    def _prepare(self, request: Request) -> tuple[list[int], int, Sampler]:
        """The prompt's tokens, how many of the first are nobody's own words, and the sampler."""
        segments = self._template.segments(request.turns)
        own = len(leading(segments, [turn.content for turn in request.turns[: request.common]]))
        shared = len(self._weights.tokenize(segments[:own]))
        sampler = Sampler(request.sampling, self._vocabulary)
        for token in request.emitted:
            sampler.accept(token)
        return self._weights.tokenize(segments), shared, sampler

    def _tokens(self, turns: Sequence[Turn]) -> list[int]:
        return self._weights.tokenize(self._template.segments(turns))

    async def count_tokens(self, turns: Sequence[Turn]) -> int:
        return len(await asyncio.to_thread(self._tokens, turns))

    async def text_of(self, token_ids: Sequence[int]) -> str:
        return b"".join(map(self._weights.piece, token_ids)).decode(errors="replace")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise EngineError("This model writes text; it has no embeddings.")

    def capacity(self) -> Capacity:
        return Capacity(self._slots, self._context.tokens, self._batcher.busy)

    def fingerprint(self) -> str:
        template = hashlib.sha256(self._weights.template_source().encode()).hexdigest()[:12]
        alone = f" reproducible threads={self._threads}" * self._reproducible
        told = f"{build()} cache = {self._context.cache}{alone} on {processor()}"
        return f"{told} template={template} file={self._path.name}"

    def seconds_without_progress(self) -> float:
        return self._batcher.seconds_without_progress()

    def most_seconds_without_progress(self) -> float:
        return self._batcher.most_seconds_without_progress()


def _special_tokens(weights: Weights) -> tuple[str, str]:
    from llama_cpp import llama_vocab_bos, llama_vocab_eos

    vocabulary = weights.vocabulary
    return (
        weights.special_text(llama_vocab_bos(vocabulary)),
        weights.special_text(llama_vocab_eos(vocabulary)),
    )


def leading(segments: Sequence[Segment], contents: Sequence[str]) -> list[Segment]:
    """The first segments that are the template's own, or one of these contents."""
    own = itertools.takewhile(lambda s: s.trusted or s.text in contents, segments)
    return list(own)
