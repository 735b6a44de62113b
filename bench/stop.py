"""Stop: how soon it is acknowledged and how soon people see the end.

python -m bench.stop [runs]. How soon the engine's slot is free: bench.engine --only stop.
"""

import asyncio
import sys
import time
from statistics import median

from bench.record import record
from bench.site import Person, Site, site, watch


async def through_the_site(running: Site, runs: int) -> dict[str, float]:
    person = await Person(running).arrive()
    acknowledged, ended = [], []
    async with person.socket() as socket:
        for _ in range(runs):
            generation = await person.ask("Tell me a very long story about the sea.")
            async for frame in watch(socket, generation):
                if frame["type"] == "delta" and frame["seq"] == 5:
                    asked = time.perf_counter()
                    await person.stop(generation)
                    acknowledged.append(time.perf_counter() - asked)
            ended.append(time.perf_counter() - asked)
    return {
        "acknowledged, median ms": round(median(acknowledged) * 1000, 1),
        "acknowledged, limit ms": 50.0,
        "end on the socket, median ms": round(median(ended) * 1000, 1),
        "end on the socket, worst ms": round(max(ended) * 1000, 1),
    }


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with site("smollm2-135m-instruct") as running:
        figures = asyncio.run(through_the_site(running, runs))
    record("stop", figures, f"{runs} runs each, the real model, one stream")


if __name__ == "__main__":
    main()
