"""The engine against llama-server: the same weights, threads, context, prompts and sampling.

python -m bench.engine [--model FILE] [--rounds N] [--threads N] [--only streams,quoting,…]
takes the two in turn; the other one is loaded and idle. Every ratio is of one round.
"""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from bench.latency import sixth, stall, stop
from bench.llama_server import server_version
from bench.pairs import CONTEXT_TOKENS, SLOTS, Plan
from bench.plot import plot
from bench.process import process
from bench.record import record
from bench.site import MODELS
from bench.throughput import quoting, streams
from deploy.running import Problem
from inference.catalogue import CATALOGUE
from inference.engines.base import EngineError
from inference.engines.llama_library import build

PARTS = {part.__name__: part for part in (streams, quoting, sixth, stall, stop, process)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The engine against llama-server.")
    default = MODELS / CATALOGUE["smollm2-135m-instruct"].file_name
    parser.add_argument("--model", type=Path, default=default, help="a model file (GGUF)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of both")
    parser.add_argument("--only", default="", help=f"some of: {','.join(PARTS)}")
    return parser.parse_args()


def chosen(names: str) -> list[str]:
    parts = [name for name in names.split(",") if name] or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise Problem(f"There is no part {', '.join(unknown)}. There are: {', '.join(PARTS)}.")
    return parts


async def measure(plan: Plan, parts: list[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in parts:
        print(f"Measuring: {name}", flush=True)
        try:
            figures |= await PARTS[name](plan)
        except Problem as problem:  # the other parts are measured and saved all the same
            print(f"{name} was not measured: {problem}", flush=True)
            figures[f"{name}, not measured"] = str(problem)
    return figures


def main() -> None:
    options = arguments()
    parts = chosen(options.only)
    if not options.model.is_file():
        raise Problem(f"There is no model file {options.model}. Name one with --model.")
    plan = Plan(options.model.resolve(), options.rounds, options.threads)
    figures: dict[str, Any] = {"server": server_version(), "ours": build()}
    figures |= asyncio.run(measure(plan, parts))
    note = (
        f"{plan.model.name}, {plan.rounds} rounds, {plan.threads} threads each, {SLOTS} slots of "
        f"{CONTEXT_TOKENS} tokens; ours called in this process, the server over HTTP"
    )
    names = ["engine"] + ([] if parts == list(PARTS) else parts)
    names += [] if options.model.parent == MODELS else [plan.model.stem]
    plot(record("-".join(names), figures, note))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers are to end with it
    try:
        main()
    except (Problem, EngineError) as problem:
        sys.exit(str(problem))
