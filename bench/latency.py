"""First token of a conversation's sixth turn, stalls by a long prompt, and Stop."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import mean, median, quantiles
from typing import Any

from bench.pairs import Pair, Plan, answer_all, compared
from bench.peers import Answer, Peer, Theirs
from bench.throughput import Table

LONG_PROMPT = 1490  # tokens
RUNNING = 4  # streams that a long prompt stalls
STEPS_BEFORE = 30  # tokens of each before the long prompt comes
STALL_LIMIT, OWN_LIMIT = 3.0, 1.2
BATCHES = (24, 32, 64, 128)  # settings tried for the server; its default is 2048
STOP_LIMIT = 300  # milliseconds


# --- the sixth turn -----------------------------------------------------------------------
async def sixth(plan: Plan) -> dict[str, Any]:
    async with plan.pair() as pair:
        table = {name: await _sixth_turns(pair, n) for name, n in
                 (("alone", 1), ("four at once", 4))}  # fmt: skip
    return {"first token of the sixth turn, ms": table}


async def _sixth_turns(pair: Pair, conversations: int) -> dict[str, Any]:
    theirs, mine, cached, worst = [], [], set(), []
    for number in range(pair.plan.rounds + 1):
        jobs = [await pair.sixth_turn(16) for _ in range(conversations)]
        answers = [await answer_all(peer, jobs) for peer in (pair.theirs, pair.ours)]
        if number:  # the first round warms both
            theirs.append(mean(answer.first for answer in answers[0]) * 1000)
            mine.append(mean(answer.first for answer in answers[1]) * 1000)
            worst.append([max(answer.first for answer in side) * 1000 for side in answers])
            cached |= {(answer.cached, len(job.ids)) for side in answers
                       for answer, job in zip(side, jobs, strict=True)}  # fmt: skip
    row = compared(theirs, mine) | {"limit": 1.0}
    for who, column in zip(("server", "ours"), zip(*worst, strict=True), strict=True):
        row[f"{who}, last of them"] = round(median(column), 1)
    low, high = min(cached), max(cached)
    return row | {"seen": f"{low[0]}-{high[0]}", "of": f"{low[1]}-{high[1]}"}


# --- stalls -------------------------------------------------------------------------------
async def stall(plan: Plan) -> dict[str, Any]:
    async with plan.pair() as pair:
        with ExitStack() as stack:
            peers: dict[str, Peer] = {"server, default": pair.theirs}
            for size in BATCHES:
                server = stack.enter_context(plan.server("-b", str(size), "-ub", str(size)))
                peers[f"server, -b {size} -ub {size}"] = Theirs(server)
            peers["ours"] = pair.ours
            found: dict[str, list[Stall]] = {name: [] for name in peers}
            for _ in range(plan.rounds):
                for name, peer in peers.items():
                    found[name].append(await _stall(pair, peer))
                    print(f"  {name}: {found[name][-1].own:.2f} s", flush=True)
    return {f"{RUNNING} streams while a prompt of {LONG_PROMPT} tokens is read": _stalls(found)}


class Stall:
    """What one long prompt did to the running streams; times in seconds."""

    def __init__(self, running: Sequence[Answer], long: Answer) -> None:
        self.own = long.first
        start, end = long.sent, long.arrivals[0]
        self.before: list[float] = []
        self.during: list[float] = []
        for answer in running:
            for a, b in zip(answer.arrivals[2:], answer.arrivals[3:], strict=False):
                if b <= start:
                    self.before.append(b - a)
                elif a < end:
                    self.during.append(b - a)
        self.step = median(self.before)


async def _stall(pair: Pair, peer: Peer) -> Stall:
    room = 1700  # more tokens than any of them writes before it is stopped
    # All made before: making a text of so many tokens takes the processor from who is measured.
    jobs = [pair.job(pair.author().short(), room) for _ in range(RUNNING)]
    late = pair.job(pair.author().long(LONG_PROMPT), 4)
    running = [Answer() for _ in jobs]
    tasks = [asyncio.create_task(peer.write(j, a)) for j, a in zip(jobs, running, strict=True)]
    while min(len(answer.arrivals) for answer in running) < STEPS_BEFORE:
        await asyncio.sleep(0.01)
    (long,) = await answer_all(peer, [late])
    assert not any(task.done() for task in tasks)
    await _end(tasks, peer)
    return Stall(running, long)


async def _end(tasks: Sequence[asyncio.Task[None]], peer: Peer) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    while await peer.busy():
        await asyncio.sleep(0.001)


def _stalls(found: dict[str, list[Stall]]) -> Table:
    own = {name: median(s.own for s in stalls) for name, stalls in found.items()}
    table: Table = {}
    for name, stalls in found.items():
        table[name] = {
            "step ms": round(median(s.step for s in stalls) * 1000, 1),
            "alone p99 steps": round(median(_p99(s.before) / s.step for s in stalls), 2),
            "p50 ms": round(median(median(s.during) for s in stalls) * 1000, 1),
            "p99 ms": round(median(_p99(s.during) for s in stalls) * 1000, 1),
            "p50 steps": round(median(median(s.during) / s.step for s in stalls), 2),
            "p99 steps": round(median(_p99(s.during) / s.step for s in stalls), 2),
            "held up by, p99 steps": round(median(_p99(s.during) / s.step for s in stalls) - 1, 2),
            "of the rounds": [round(_p99(s.during) / s.step, 2) for s in stalls],
            "own first token s": round(own[name], 2),
            "own, ratio": round(own["ours"] / own[name], 2),
        }
    best = min((name for name in table if name != "ours"), key=lambda n: table[n]["p99 ms"])
    table[f"{best}"]["note"] = "its best"
    table["ours"] |= {"limits": f"{STALL_LIMIT} steps, own {OWN_LIMIT} x"}
    return table


def _p99(numbers: Sequence[float]) -> float:
    return quantiles(numbers, n=100, method="inclusive")[98]


# --- Stop ---------------------------------------------------------------------------------
async def stop(plan: Plan) -> dict[str, Any]:
    async with plan.pair() as pair:
        table: Table = {}
        for where in ("an answer", "a long prompt"):
            theirs, mine = [], []
            for _ in range(plan.rounds):
                theirs.append(await _stop(pair, pair.theirs, where == "a long prompt"))
                mine.append(await _stop(pair, pair.ours, where == "a long prompt"))
            table[where] = compared(theirs, mine) | {
                "server, worst": round(max(theirs), 1),
                "ours, worst": round(max(mine), 1),
                "limit": STOP_LIMIT,
            }
    return {"slot free after the line is closed in the middle of, ms": table}


async def _stop(pair: Pair, peer: Peer, in_prompt: bool) -> float:
    author, answer = pair.author(), Answer()
    job = pair.job(author.long(LONG_PROMPT) if in_prompt else author.chat(), 512)
    task = asyncio.create_task(peer.write(job, answer))
    while not (answer.sent if in_prompt else len(answer.arrivals) > 20):
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.2 if in_prompt else 0)
    assert not task.done()
    stopped = time.perf_counter()
    await _end([task], peer)
    return (time.perf_counter() - stopped) * 1000
