"""What the site adds to the first token, against calling the engine directly.

python -m bench.first_token [runs] [cluster]: pairs of the two, in turn, same prompt and model.
The path measured is the whole one: form post, database, doorbell, worker, log, socket; of a
cluster nginx, PostgreSQL, Redis and Celery too.
"""

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median
from urllib.parse import urlsplit
from uuid import uuid4

from bench.cluster import running_cluster
from bench.record import record
from bench.site import MODELS, Address, Person, site, watch
from inference.catalogue import CATALOGUE
from inference.engines.base import Engine, Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.simulated import SimulatedEngine

# A number makes each prompt a new one, so that no cache serves either side.
PROMPT = {
    "simulated": "count 3 pace=1000 {}",
    "smollm2-135m-instruct": "{} is my number. Name a river.",
}


async def direct(engine: Engine, prompt: str) -> float:
    started = time.perf_counter()
    # The scope lets both sides keep the system prompt's first chunk, as one person's chats do.
    request = Request((Turn("user", prompt),), Sampling(max_tokens=4), scope="bench")
    found = 0.0
    async for delta in engine.generate(request):
        if delta.token_ids and not found:
            found = time.perf_counter() - started
    return found


async def through_the_site(person: Person, prompt: str) -> float:
    async with person.socket() as socket, wire(person) as send:
        await asyncio.sleep(0.1)  # a page that has been open for a while
        started = time.perf_counter()
        generation = await send(prompt)
        found = 0.0
        async for frame in watch(socket, generation):
            if frame["type"] == "delta" and not found:
                found = time.perf_counter() - started
                await person.stop(generation)
    await asyncio.sleep(0.3)  # the automatic title is made in the meantime
    return found


@contextlib.asynccontextmanager
async def wire(person: Person) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
    """Sends like a browser on a connection that is open already, in as little time as can be.

    The client's own time would count as the site's: httpx alone takes three milliseconds.
    """
    address = urlsplit(person.site.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)

    async def send(text: str) -> str:
        head, body = person.form("/chats/", text=text, client_id=str(uuid4()))
        writer.write(head + body)
        status = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", status)
        assert status.startswith(b"HTTP/1.1 200"), status
        assert length, status
        answer = await reader.readexactly(int(length[1]))
        found = re.search(rb'data-generation=\\"([^"\\]+)', answer)
        assert found, answer
        return found[1].decode()

    yield send
    writer.close()


LIMITS = {"site": 15.0, "cluster": 30.0}  # milliseconds


async def measure(
    running: Address, engine: Engine, prompt: str, runs: int, limit: float
) -> dict[str, float]:
    await engine.start(lambda percent: None)
    person = await Person(running).arrive()
    pairs = []
    for run in range(runs + 2):
        mine, its = prompt.format(1000 + run), prompt.format(5000 + run)
        pair = await direct(engine, mine), await through_the_site(person, its)
        if run >= 2:
            pairs.append(pair)
    await engine.stop()
    return {
        "direct, median ms": round(median(a for a, _ in pairs) * 1000, 1),
        "through the site, median ms": round(median(b for _, b in pairs) * 1000, 1),
        "added, median of pairs, ms": round(median(b - a for a, b in pairs) * 1000, 1),
        "limit, ms": limit,
    }


def main() -> None:
    kind = "cluster" if "cluster" in sys.argv else "site"
    runs = next((int(word) for word in sys.argv[1:] if word.isdigit()), 30)
    figures: dict[str, float] = {}
    entry = CATALOGUE["smollm2-135m-instruct"]
    engines: dict[str, Engine] = {
        "simulated": SimulatedEngine(),
        entry.slug: LlamaCppEngine(MODELS / entry.file_name, threads=1),
    }
    start = running_cluster if kind == "cluster" else site
    for model, engine in engines.items():
        with start(model, WORKER_THREADS="1") as running:
            asked = measure(running, engine, PROMPT[model], runs, LIMITS[kind])
            found = asyncio.run(asked)
        figures |= {f"{model}: {name}": value for name, value in found.items()}
    name = "first-token-cluster" if kind == "cluster" else "first-token"
    record(name, figures, f"{runs} pairs a model, one person, idle {kind}")


if __name__ == "__main__":
    main()
