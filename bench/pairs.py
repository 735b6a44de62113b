"""What every part of the engine's benchmark shares: the two sides, their jobs, and ratios."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.llama_server import LlamaServer
from bench.peers import Answer, Job, Ours, Peer, Theirs, ours
from bench.prompts import Author, Turns
from deploy.running import Problem
from inference.engines.base import Sampling

SLOTS = 16
CONTEXT_TOKENS = 2048
SEEN, SIXTH_TURN = 941, 1000  # tokens


@dataclass(frozen=True)
class Plan:
    """What is compared: one model file, so many rounds, the same threads for both."""

    model: Path
    rounds: int
    threads: int

    def server(self, *more: str) -> LlamaServer:
        return LlamaServer(self.model, SLOTS, CONTEXT_TOKENS, self.threads, *more)

    @asynccontextmanager
    async def pair(self, *more: str) -> AsyncIterator["Pair"]:
        """Both loaded; `more` are further arguments of the server."""
        with self.server(*more) as server:
            async with ours(self.model, SLOTS, CONTEXT_TOKENS, self.threads) as engine:
                yield Pair(self, Theirs(server), engine)


@dataclass
class Pair:
    plan: Plan
    theirs: Theirs
    ours: Ours
    _seeds: "itertools.count[int]" = field(default_factory=lambda: itertools.count(10_001))

    def author(self) -> Author:
        return Author(next(self._seeds), lambda turns: len(self.ours.ids(turns)))

    def job(self, turns: Turns, tokens: int, emitted: Sequence[int] = (), scope: str = "") -> Job:
        sampling = self.ours.endless(Sampling(seed=next(self._seeds), max_tokens=tokens))
        ids = self.ours.ids(turns)
        return Job(turns, (*ids, *emitted), sampling, tuple(emitted), scope)

    async def sixth_turn(self, tokens: int) -> Job:
        """The sixth turn of a conversation of which both have evaluated the first five."""
        before, now = self.author().conversation(SEEN, SIXTH_TURN)
        asked, ids = before[:-1], self.ours.ids(now)
        answered = ids[len(self.ours.ids(asked)) : SEEN]
        scope = before[0].content
        primer = self.job(asked, 1, answered, scope)
        if ids[: len(primer.ids)] != primer.ids:
            raise Problem("This model's template changes earlier turns: no prefix can be reused.")
        for peer in (self.theirs, self.ours):
            await answer_all(peer, [primer])
        return self.job(now, tokens, scope=scope)


async def answer_all(peer: Peer, jobs: Sequence[Job]) -> list[Answer]:
    """All at once. Raises AssertionError if an answer is not as long as it was to be."""
    answers = [Answer() for _ in jobs]
    await asyncio.gather(*(peer.write(job, a) for job, a in zip(jobs, answers, strict=True)))
    for job, answer in zip(jobs, answers, strict=True):
        assert answer.tokens == job.sampling.max_tokens, answer
    return answers


def gaps(answers: Sequence[Answer]) -> list[float]:
    return [b - a for answer in answers for a, b in pairwise(answer.arrivals)]


def compared(theirs: Sequence[float], mine: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Medians of both and the ratios, ours to the server's, of the values taken in pairs."""
    ratios = [b / a for a, b in zip(theirs, mine, strict=True)]
    return {
        "server": round(median(theirs), digits),
        "ours": round(median(mine), digits),
        "ratio": round(median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }
