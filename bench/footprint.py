"""Memory of the idle site and how fast it starts.

python -m bench.footprint: proportional set size (shared pages counted once, in parts).
The key-value cache is computed from the model's shape and taken off the worker's figure.
"""

import asyncio
import time
from pathlib import Path

from bench.record import record
from bench.site import MODELS, Person, Site, site, watch
from inference.catalogue import CATALOGUE

MIB = 1024 * 1024
# SmolLM2-135M: 30 layers, 3 heads of keys and of values, 64 numbers each, 34 bytes for 32 of them.
CACHE_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 34 / 32


def megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


async def first_token(running: Site) -> float:
    started = time.perf_counter()
    person = Person(running)
    await person.arrive()
    generation = await person.ask("Name a river.")
    async with person.socket() as socket:
        async for frame in watch(socket, generation):
            if frame["type"] == "delta":
                break
    return time.perf_counter() - started


def main() -> None:
    entry = CATALOGUE["smollm2-135m-instruct"]
    with site(entry.slug) as running:
        asyncio.run(first_token(running))  # everything is loaded
        running.stop()
        started = time.perf_counter()
        running.start()
        ready = time.perf_counter() - started
        token = asyncio.run(first_token(running))
        time.sleep(8)
        web, worker = (megabytes(running.pid_of(role)) for role in ("web", "worker"))
        total = sum(map(megabytes, running.pids))
    weights = (MODELS / entry.file_name).stat().st_size / MIB
    cache = 8 * 4096 * CACHE_BYTES_PER_TOKEN / MIB
    figures = {
        "web process, MB": round(web, 1),
        "web process, limit MB": 110.0,
        "worker, MB": round(worker, 1),
        "worker less weights and cache, MB": round(worker - weights - cache, 1),
        "worker less weights and cache, limit MB": 150.0,
        "all processes, MB": round(total, 1),
        "start to ready, s": round(ready, 2),
        "start to ready, limit s": 3.0,
        "ready to first token of a new guest's second chat, s": round(token, 2),
        "ready to first token, limit s": 3.0,
    }
    record("footprint", figures, "idle, 8 slots of 4096 tokens")


if __name__ == "__main__":
    main()
