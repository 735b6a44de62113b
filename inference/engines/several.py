"""Several answers of one request, side by side."""

import asyncio
import contextlib
import hashlib
import struct
from collections.abc import AsyncGenerator
from dataclasses import replace

from inference.engines.base import Delta, Engine, Request, RequestRefused

MOST = 8
Item = tuple[int, Delta] | Exception | None


def seed_of(seed: int, index: int) -> int:
    """The seed of one of several answers; the first has the request's own."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(struct.pack("<QQ", seed, index), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


async def several(
    engine: Engine, request: Request, n: int
) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of `n` answers as they come, each with its answer's index.

    The first evaluates the prompt; the others begin with its first token and reuse it. Closing
    this closes all; so does an error of one. Raises RequestRefused and what the engine raises.
    """
    if type(n) is not int or not 1 <= n <= MOST:
        raise RequestRefused(f"n must be a whole number from 1 to {MOST}.")
    queue: asyncio.Queue[Item] = asyncio.Queue()
    sampling = request.sampling
    seeds = [seed_of(sampling.seed, index) for index in range(n)]
    requests = [replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds]
    tasks = [asyncio.create_task(_pump(engine, requests[0], 0, queue))]
    try:
        while n:
            item = await queue.get()
            if len(tasks) < len(requests) and _has_begun(item):
                rest = list(enumerate(requests))[1:]
                tasks += [asyncio.create_task(_pump(engine, it, i, queue)) for i, it in rest]
            if isinstance(item, Exception):
                raise item
            if item is None:
                n -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _has_begun(item: Item) -> bool:
    """Whether the prompt has been evaluated; an answer that ends at once has no token."""
    return item is None or (isinstance(item, tuple) and bool(item[1].token_ids or item[1].text))


async def _pump(engine: Engine, request: Request, index: int, queue: asyncio.Queue[Item]) -> None:
    """One answer's deltas into the queue, then its error or None."""
    try:
        async with contextlib.aclosing(engine.generate(request)) as stream:
            async for delta in stream:
                queue.put_nowait((index, delta))
    except Exception as error:  # raised again where the answers are read
        queue.put_nowait(error)
    else:
        queue.put_nowait(None)
