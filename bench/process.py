"""Memory and load time, each in a fresh process. As a program: our engine in such a process.

python -m bench.process FILE SLOTS CONTEXT THREADS answers a question, says so, and waits for
the end of its input.
"""

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.pairs import CONTEXT_TOKENS, SLOTS, Plan, answer_all, compared
from bench.peers import Job, Ours, Theirs, ours
from bench.site import ROOT
from inference.engines.base import Sampling, Turn

MIB = 1024 * 1024
QUESTION = (Turn("user", "Name a river."),)


async def process(plan: Plan) -> dict[str, Any]:
    async with ours(plan.model, 1, 512, plan.threads) as engine:
        job = _job(engine)
    weights = plan.model.stat().st_size / MIB
    theirs, mine = [], []
    for _ in range(plan.rounds):
        theirs.append(await _server(plan, job))
        mine.append(_child(plan))
    its_memory, memory = ([megabytes for _, megabytes in side] for side in (theirs, mine))
    table = {
        "start to first token, s": compared([s for s, _ in theirs], [s for s, _ in mine], 2),
        "resident, MB": compared(its_memory, memory),
        "resident less the model file, MB": compared(
            [total - weights for total in its_memory], [total - weights for total in memory]
        ),
    }
    return {f"a fresh process, {SLOTS} slots of {CONTEXT_TOKENS} tokens, file in memory": table}


def _job(engine: Ours) -> Job:
    return Job(QUESTION, engine.ids(QUESTION), engine.endless(Sampling(max_tokens=4)))


async def _server(plan: Plan, job: Job) -> tuple[float, float]:
    with plan.server() as server:
        (answer,) = await answer_all(Theirs(server), [job])
        return answer.arrivals[0] - server.started, _resident(server.pid)


def _child(plan: Plan) -> tuple[float, float]:
    started = time.perf_counter()
    words = [plan.model, SLOTS, CONTEXT_TOKENS, plan.threads]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.process", *map(str, words)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline(), "the engine did not start"
        return time.perf_counter() - started, _resident(child.pid)


def _resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


async def hold(model: str, *numbers: str) -> None:
    async with ours(Path(model), *map(int, numbers)) as engine:
        await answer_all(engine, [_job(engine)])
        print("answered", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(hold(*sys.argv[1:]))
