"""The two that are compared, with one face: our engine in this process, and llama-server.

Ours is called as the worker calls it, through Engine.generate: its time includes the chat
template and the tokenizer. The server is spoken to over HTTP, as it only can be, by a reader
that does next to nothing a token; it is sent token ids on a connection that is open already.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bench.llama_server import LlamaServer
from inference import collector
from inference.engines.base import Request, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.threads import SWITCH_SECONDS

EVENT = b'data: {"'
LAST_EVENT = b'"stop":true'
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Job:
    """What both are asked. `ids`: the tokens of the turns and of `emitted`.

    reuse: what was evaluated before for the same scope may be used.
    """

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]
    sampling: Sampling
    emitted: tuple[int, ...] = ()
    scope: str = ""


@dataclass
class Answer:
    """Times are of time.perf_counter; an arrival is of one token or of several at once."""

    sent: float = 0.0
    done: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0

    @property
    def first(self) -> float:
        return self.arrivals[0] - self.sent


class Peer(Protocol):
    async def write(self, job: Job, answer: Answer) -> None:
        """Fills the answer in as it comes; being cancelled stops it on the other side too."""

    async def busy(self) -> int:
        """Slots at work."""
        ...


class Ours:
    def __init__(self, model: Path, slots: int, context_tokens: int, threads: int) -> None:
        self.engine = LlamaCppEngine(
            model, slots=slots, context_tokens=context_tokens, threads=threads
        )

    def ids(self, turns: tuple[Turn, ...]) -> tuple[int, ...]:
        return tuple(self.engine._tokens(turns))

    def endless(self, sampling: Sampling) -> Sampling:
        """With a bias against the tokens that end an answer, so that its length is known."""
        ends = sorted(self.engine._vocabulary.ends)
        return replace(sampling, logit_bias=tuple((token, -100) for token in ends))

    async def write(self, job: Job, answer: Answer) -> None:
        most = len(job.emitted) + job.sampling.max_tokens
        request = Request(
            job.turns, replace(job.sampling, max_tokens=most), job.emitted, scope=job.scope
        )
        answer.sent = time.perf_counter()
        async with aclosing(self.engine.generate(request)) as deltas:
            async for delta in deltas:
                if delta.token_ids:
                    answer.arrivals.append(time.perf_counter())
                if delta.finish and delta.usage:
                    answer.tokens = delta.usage.completion - len(job.emitted)
                    answer.cached = delta.usage.cached
        answer.done = time.perf_counter()

    async def busy(self) -> int:
        return self.engine.capacity().busy


class Theirs:
    def __init__(self, server: LlamaServer) -> None:
        self._server = server

    async def write(self, job: Job, answer: Answer) -> None:
        loop = asyncio.get_running_loop()
        transport, reader = await loop.create_connection(
            lambda: EventReader(answer), "127.0.0.1", self._server.port
        )
        head, body = _request("POST", "/completion", json.dumps(_parameters(job)).encode())
        try:
            answer.sent = time.perf_counter()
            transport.write(head + body)
            await reader.closed.wait()
        finally:
            transport.abort()
        assert reader.text.startswith(b"HTTP/1.1 200"), reader.text[:500].decode()
        told = json.loads(reader.text[reader.text.rindex(EVENT) + 6 :].split(b"\n\n")[0])
        answer.tokens = told["tokens_predicted"]
        answer.cached = told["timings"]["cache_n"]
        answer.arrivals.pop()  # the last event only sums up

    async def busy(self) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        writer.write(_request("GET", "/slots")[0])
        text = await reader.read()
        writer.close()
        return text.count(b'"is_processing":true')

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class EventReader(asyncio.Protocol):
    """Counts the events as they come; nothing is parsed before the end."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.text = bytearray()
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        known = len(self.text)
        self.text += data
        if events := self.text.count(EVENT, max(0, known - len(EVENT) + 1)):
            self._answer.arrivals += [now] * events
        if self.text.find(LAST_EVENT, max(0, known - len(LAST_EVENT) + 1)) >= 0:
            self._answer.done = now

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()


def _request(verb: str, path: str, body: bytes = b"") -> tuple[bytes, bytes]:
    head = (
        f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode(), body


def _parameters(job: Job) -> dict[str, Any]:
    sampling = job.sampling
    return {
        "prompt": job.ids,
        "stream": True,
        "n_predict": sampling.max_tokens,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_window,
        "logit_bias": sampling.logit_bias,
        "seed": sampling.seed,
        "cache_prompt": bool(job.scope),
    }


@asynccontextmanager
async def ours(model: Path, slots: int, context_tokens: int, threads: int) -> AsyncIterator[Ours]:
    peer = Ours(model, slots, context_tokens, threads)
    await peer.engine.start(lambda percent: None)
    collector.settle()  # as a worker does
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield peer
    finally:
        await peer.engine.stop()
