"""A plainly named fake: it writes scripted text at a set pace, for tests and load tests.

It answers by rules, so that a test can say what it expects:

* a last message that begins with "echo " is answered with the rest of it, word for word;
* "count N" with the numbers from 1 to N;
* anything else with sentences drawn from the seed.

"pace=N" anywhere in the last message sets the tokens per second of that answer,
"prefill=S" how many seconds pass before its first token, "crash=N" kills the process at
token N (some prompts crash engines; this one does so on request).
"""

import asyncio
import hashlib
import os
import random
import re
import signal
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import islice

from inference import failpoints
from inference.engines.base import (
    DECODE_SECONDS,
    PREFILL_SECONDS,
    Capacity,
    Delta,
    EngineError,
    FinishReason,
    Progress,
    Request,
    RequestRefused,
    Turn,
    Usage,
    hash_of,
)
from inference.engines.text import TextAssembler

WORDS = (
    " the of and to in is that for it as with on by at from this are an or be which one"
    " answer stream token queue worker message river mountain letter window garden number"
    " quiet early simple useful careful long short open again together because although"
).split(" ")
PIECES: list[bytes] = [bytes([value]) for value in range(256)]
PIECES += [f" {word}".encode() for word in WORDS if word]
LACKS = ("json_schema", "logprobs", "logit_bias")  # penalties and temperature it may ignore
IDS = {piece: number for number, piece in enumerate(PIECES)}
_SPLIT = re.compile(rb" [a-z]+|.", re.DOTALL)


def encode(text: str) -> list[int]:
    """Token ids of any text: known words whole, everything else byte by byte."""
    ids: list[int] = []
    for piece in _SPLIT.findall(text.encode()):
        ids.extend([IDS[piece]] if piece in IDS else piece)
    return ids


class SimulatedEngine:
    def __init__(
        self, *, slots: int = 8, context_tokens: int = 4096, tokens_per_second: float = 50,
        load_seconds: float = 0,
    ) -> None:  # fmt: skip
        self._slots = asyncio.Semaphore(slots)
        self._capacity = slots
        self._context = context_tokens
        self._pace = tokens_per_second
        self._load_seconds = load_seconds
        self._busy = self._reading = 0
        self._moved_at = 0.0

    async def start(self, progress: Progress) -> None:
        for percent in range(0, 100, 10):
            progress(percent)
            await asyncio.sleep(self._load_seconds / 10)
        progress(100)

    async def stop(self) -> None:
        return None

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        request.sampling.refuse(LACKS, "The simulated engine")
        prompt = self._prompt_tokens(request.turns)
        if prompt >= self._context:
            raise RequestRefused(
                f"The prompt has {prompt} tokens; this model reads {self._context}."
            )
        async with self._slots:
            self._busy += 1
            self._moved_at = time.monotonic()
            try:
                async for delta in self._stream(request, prompt):
                    yield delta
            finally:
                self._busy -= 1

    async def _stream(self, request: Request, prompt: int) -> AsyncGenerator[Delta, None]:
        read = hash_of([token for turn in request.turns for token in encode(turn.content)])
        yield Delta(usage=Usage(prompt, 0, len(request.emitted)), prompt_sha256=read)
        question = request.turns[-1].content
        await self._read(_directive(question, "prefill", 0))
        assembler = TextAssembler(PIECES.__getitem__, request.sampling.stop)
        for token in request.emitted:
            assembler.feed(token)
        made = len(request.emitted)
        limit = min(request.sampling.max_tokens, self._context - prompt)
        at_limit: FinishReason = "length" if limit == request.sampling.max_tokens else "context"
        crash = _directive(question, "crash", 0)
        clock = Pace(_directive(question, "pace", self._pace))
        finish: FinishReason = "stop" if assembler.stopped else "end"
        for token in islice(_answer(request), made, None):
            if assembler.stopped:
                break
            if made >= limit:
                finish = at_limit
                break
            await clock.tick()
            if failpoints.is_set("decode"):
                # In a thread, as a decoder would be stuck: the process is well otherwise.
                await asyncio.to_thread(failpoints.hit, "decode")
            self._moved_at = time.monotonic()
            made += 1
            if made == crash:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Delta(text=assembler.feed(token), token_ids=(token,))
            finish = "stop" if assembler.stopped else finish
        usage = Usage(prompt, 0, made)
        text = assembler.flush() if finish == "end" else ""
        yield Delta(text=text, finish=finish, usage=usage)

    async def count_tokens(self, turns: Sequence[Turn]) -> int:
        return self._prompt_tokens(turns)

    async def text_of(self, token_ids: Sequence[int]) -> str:
        return b"".join(PIECES[token] for token in token_ids).decode(errors="replace")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        raise EngineError("The simulated engine has no embeddings.")

    def capacity(self) -> Capacity:
        return Capacity(self._capacity, self._context, self._busy)

    def fingerprint(self) -> str:
        return "simulated/1"

    def seconds_without_progress(self) -> float:
        return time.monotonic() - self._moved_at if self._busy else 0.0

    def most_seconds_without_progress(self) -> float:
        return PREFILL_SECONDS if self._reading else DECODE_SECONDS

    async def _read(self, seconds: float) -> None:
        self._reading += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._reading -= 1
            self._moved_at = time.monotonic()

    def _prompt_tokens(self, turns: Sequence[Turn]) -> int:
        return sum(len(encode(turn.content)) + 4 for turn in turns)


class Pace:
    """Lets one token through every 1/rate seconds, catching up after a late wake-up; 0: at once."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._next = time.monotonic()

    async def tick(self) -> None:
        self._next += self._interval
        await asyncio.sleep(max(0.0, self._next - time.monotonic()))


def _directive(question: str, name: str, default: float) -> float:
    found = re.search(rf"\b{name}=(\d+(?:\.\d+)?)", question)
    return float(found[1]) if found else default


def _answer(request: Request) -> Iterator[int]:
    question = request.turns[-1].content
    if question.startswith("echo "):
        return iter(encode(question.removeprefix("echo ")))
    if counted := re.match(r"count (\d+)", question):
        return iter(encode(" ".join(str(number + 1) for number in range(int(counted[1])))))
    return _sentences(request)


def _sentences(request: Request) -> Iterator[int]:
    """Sentences that depend on the seed and the question only."""
    key = f"{request.sampling.seed} {request.turns[-1].content}"
    draw = random.Random(hashlib.sha256(key.encode()).digest())
    for _ in range(draw.randint(4, 9)):
        yield from encode(f"{draw.choice(['The', 'One', 'This'])}")
        for _ in range(draw.randint(6, 14)):
            yield IDS[f" {draw.choice(WORDS[1:])}".encode()]
        yield from encode(". ")
