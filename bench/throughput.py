"""Tokens a second of all streams together, with and without guesses."""

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bench.pairs import Pair, Plan, answer_all, compared, gaps
from bench.peers import Answer, Job
from bench.prompts import Author, Turns
from inference.engines.lookup import Lookup

STREAMS = (1, 2, 4, 8, 16)
FEWER_STREAMS = (1, 4, 16)
QUOTING_STREAMS = (1, 2)
KINDS: dict[str, Callable[[Author], Turns]] = {
    "chats of 150 to 250 tokens": Author.chat,
    "short prompts of about 30 tokens": Author.short,
}
TOKENS = 128  # of each answer
LIMITS = {n: 1.25 if n == 16 else 1.05 for n in STREAMS}
QUOTING_LIMIT = 1.3
# The server keeps evaluated prompts in memory too. Nothing can be reused here, so that would
# only cost it time.
PLAIN = ("--cache-ram", "0")
# The server's own way to guess from the text before, with the lengths of ours.
ITS_GUESSES = (
    *("--spec-type", "ngram-map-k", "--spec-ngram-map-k-size-n", "4"),
    *("--spec-ngram-map-k-size-m", "12"),
)

Table = dict[str, dict[str, Any]]


async def streams(plan: Plan) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with without_guesses():
        async with plan.pair(*PLAIN) as pair:
            for kind, turns in KINDS.items():
                found = Match(pair, new(pair, turns))
                figures[f"tokens/s, no guesses, {kind}"] = await found.table(LIMITS)
                figures[f"idle server, % of a core, {kind}"] = found.idle_percent
            found = Match(pair, lambda: pair.sixth_turn(TOKENS))
            name = "tokens/s, no guesses, sixth turns, 941 of 1,000 tokens evaluated before"
            figures[name] = await found.table({n: LIMITS[n] for n in FEWER_STREAMS})
    return figures


def new(pair: Pair, turns: Callable[[Author], Turns]) -> Callable[[], Awaitable[Job]]:
    """Jobs of which nothing was seen before."""

    async def job() -> Job:
        return pair.job(turns(pair.author()), TOKENS)

    return job


async def quoting(plan: Plan) -> dict[str, Any]:
    limits = dict.fromkeys(QUOTING_STREAMS, QUOTING_LIMIT)
    figures: dict[str, Any] = {}
    async with plan.pair(*PLAIN) as pair:
        table = await Match(pair, new(pair, Author.quoting)).table(limits)
        figures["tokens/s, answers that quote, ours with guesses"] = table
    async with plan.pair(*PLAIN, *ITS_GUESSES) as pair:
        table = await Match(pair, new(pair, Author.quoting)).table(dict.fromkeys(QUOTING_STREAMS))
        figures["tokens/s, answers that quote, the server guesses too"] = table
    return figures


@contextmanager
def without_guesses() -> Iterator[None]:
    usual = Lookup.guess
    Lookup.guess = lambda self, tokens, most: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        Lookup.guess = usual  # type: ignore[method-assign]


class Match:
    """Rounds of the same jobs, the server first, then ours."""

    def __init__(self, pair: Pair, job: Callable[[], Awaitable[Job]]) -> None:
        self._pair = pair
        self._job = job
        self._idle, self._seconds = 0.0, 0.0

    @property
    def idle_percent(self) -> float:
        """Processor time the server took while ours was at work."""
        return round(100 * self._idle / self._seconds, 2)

    async def table(self, limits: dict[int, Any]) -> Table:
        await self._round(1)  # warms both
        rows = {n: await self._row(n) | {"limit": limits[n]} for n in limits}
        return {f"{n} stream{'s' * (n > 1)}": row for n, row in rows.items()}

    async def _row(self, streams: int) -> dict[str, Any]:
        number = range(self._pair.plan.rounds)
        rounds = [await self._round(streams, ours_first=bool(n % 2)) for n in number]
        theirs, mine = zip(*rounds, strict=True)
        row = compared([rate(answers) for answers in theirs], [rate(answers) for answers in mine])
        for who, side in (("server", theirs), ("ours", mine)):
            answers = [answer for round_ in side for answer in round_]
            row[f"{who} first ms"] = round(median(a.first for a in answers) * 1000)
            row[f"{who} step ms"] = round(median(gaps(answers)) * 1000, 1)
        print(f"  {streams} at once: {row}", flush=True)
        return row

    async def _round(
        self, streams: int, *, ours_first: bool = False
    ) -> tuple[list[Answer], list[Answer]]:
        """Each is first as often as the other: a machine gets warm, or is wanted elsewhere."""
        jobs = [await self._job() for _ in range(streams)]
        mine = await self._ours(jobs) if ours_first else []
        theirs = await answer_all(self._pair.theirs, jobs)
        return theirs, mine or await self._ours(jobs)

    async def _ours(self, jobs: list[Job]) -> list[Answer]:
        used, started = self._pair.theirs.cpu_seconds(), time.perf_counter()
        mine = await answer_all(self._pair.ours, jobs)
        self._idle += self._pair.theirs.cpu_seconds() - used
        self._seconds += time.perf_counter() - started
        return mine


def rate(answers: list[Answer]) -> float:
    """From the first request sent to the last answer's end."""
    seconds = max(a.done for a in answers) - min(a.sent for a in answers)
    return sum(a.tokens for a in answers) / seconds
