"""Milliseconds a process's event loop needs for its smallest job, until its line is closed.

python -m bench.pings URL COOKIE SECONDS: a process of its own, so that the work of the people in
the benchmark does not count as the server's.
"""

import asyncio
import contextlib
import itertools
import json
import sys
import time
from typing import Any

from websockets.asyncio.client import connect

EVERY = 0.01  # seconds between an answer and the next ping
LINES = 10  # in turn: one that sends twenty frames a second is shown out


async def pings(url: str, cookie: str, seconds: float) -> list[float]:
    found = []
    async with contextlib.AsyncExitStack() as stack:
        lines = [await stack.enter_async_context(_line(url, cookie)) for _ in range(LINES)]
        until = time.perf_counter() + seconds
        for line in itertools.cycle(lines):
            if (sent := time.perf_counter()) > until:
                return found
            await (await line.ping())
            found.append((time.perf_counter() - sent) * 1000)
            await asyncio.sleep(EVERY)
    raise AssertionError("a cycle has no end")


def _line(url: str, cookie: str) -> connect:
    origin: Any = url
    socket = url.replace("http", "ws") + "/ws/"
    return connect(socket, additional_headers={"Cookie": cookie}, origin=origin)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(pings(sys.argv[1], sys.argv[2], float(sys.argv[3])))))
