"""Servers of others for an engine: llama-server, vLLM, or anything that speaks OpenAI's API.

A server that dies in the middle of an answer is replaced: another one, or the same one later,
goes on after the tokens that came, so no character is lost or repeated.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from inference.engines.backends import Backend, Backends, Peer
from inference.engines.base import (
    PREFILL_SECONDS,
    Capacity,
    Delta,
    EngineError,
    FinishReason,
    Interrupted,
    Progress,
    Request,
    RequestRefused,
    Turn,
    Usage,
)
from inference.engines.flavours import FIRST_SECONDS, NEXT_SECONDS, Order, Piece, Prompt
from inference.engines.outbound import Unavailable
from inference.engines.text import TextAssembler, estimated_tokens
from inference.engines.vectors import check, units

T = TypeVar("T")
LACKS = ("logprobs", "json_schema")  # a schema's state would be lost over a seam
RETRIES = 3
TEXTS_AT_ONCE = 32  # in one request for embeddings, which has 30 seconds
LONGEST_CHARACTER = 4  # bytes, so as many tokens at most
MOST_CHARACTERS = 256  # of a token, with room to spare
SLACK = 8  # tokens more than asked for that are put down to a character at the end


class Answer:
    """What came of a request so far, by whatever servers."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt: Prompt | None = None
        self.ids = list(request.emitted)
        self.text = request.text
        self.pieces = 0 if self.ids else estimated_tokens(self.text)
        self.before = self.cached = self.restarts = 0
        self.assembler = TextAssembler(stop=request.sampling.stop)
        self.knows_text = not self.ids

    def begin_again(self) -> None:
        self.restarts += 1
        self.ids, self.text, self.pieces = [], "", 0
        self.assembler = TextAssembler(stop=self.request.sampling.stop)
        self.knows_text = True

    def begins_part(self) -> None:
        self.before = self.made

    @property
    def made_in_part(self) -> int:
        """By the server that is at it."""
        return self.made - self.before

    @property
    def made(self) -> int:
        """Tokens so far; where nobody tells them, pieces of text."""
        return len(self.ids) or self.pieces

    def is_too_long_with(self, text: str) -> bool:
        """Whatever a server calls a token or a piece."""
        most = MOST_CHARACTERS * (self.request.sampling.max_tokens + SLACK)
        return len(self.text) + len(text) > most

    @property
    def is_begun(self) -> bool:
        return bool(self.ids or self.text)

    @property
    def usage(self) -> Usage:
        tokens = self.prompt.tokens if self.prompt else 0
        return Usage(tokens, min(self.cached, tokens), self.made)

    def add(self, text: str, ids: Sequence[int]) -> Delta:
        shown = self.assembler.add(text)
        self.ids.extend(ids)
        self.text += shown
        self.pieces += bool(text)
        return Delta(shown, tuple(ids), usage=None if ids else self.usage)

    def learn(self, told: Usage | None) -> None:
        """What the server says it took; where tokens were told they are counted instead."""
        if told is None or self.prompt is None:
            return
        self.cached = told.cached
        if not self.ids and told.completion:
            self.pieces = self.before + told.completion
        if not self.prompt.ids and told.prompt and not self.before:
            self.prompt = replace(self.prompt, tokens=told.prompt)

    def finish(self, reason: FinishReason) -> Delta:
        text = self.assembler.flush() if reason == "end" else ""
        return Delta(text, finish=reason, usage=self.usage)


class UpstreamEngine:
    """context_tokens: at most; what the servers have room for counts if it is less.

    restarts: an answer that broke off begins anew where no server can go on with it; else it
    ends where it is (Interrupted).
    """

    def __init__(
        self, backends: Iterable[Backend], *, context_tokens: int, restarts: bool = False
    ) -> None:
        self._backends = Backends(backends)
        self._context_tokens = context_tokens
        self._restarts = restarts
        self._watching: asyncio.Task[None] | None = None

    def use(self, backends: Iterable[Backend]) -> None:
        """These servers from now on."""
        self._backends.use(backends)

    async def start(self, progress: Progress) -> None:
        """Servers that are not up yet are waited for by everything else, not here."""
        if not self._backends.peers:
            raise EngineError("This release has no server. Run: ./manage.py models connect")
        await self._backends.look()
        self._watching = asyncio.create_task(self._backends.watch())
        progress(100)

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._backends.close()

    # --- an answer ------------------------------------------------------------------------
    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        request.sampling.refuse(LACKS, "A model on a server of its own")
        answer = Answer(request)
        failures = 0
        while True:
            made = answer.made
            try:
                async with self._backends.lease(request.scope) as peer:
                    async with aclosing(self._attempt(peer, answer)) as deltas:
                        async for delta in deltas:
                            yield delta
                return
            except Unavailable as error:
                failures = failures + 1 if answer.made == made else 1
                if failures > RETRIES:
                    raise _given_up(error, answer) from error
            await self._wait(failures)

    async def _wait(self, failures: int) -> None:
        await asyncio.sleep(self._backends.pause(failures))
        if not any(peer.is_usable for peer in self._backends.peers):
            await self._backends.look()

    async def _attempt(self, peer: Peer, answer: Answer) -> AsyncGenerator[Delta, None]:
        """One server's part of an answer."""
        found = await peer.describe()
        if answer.prompt is None:
            answer.prompt = await self._prompt(peer, answer.request.turns)
            yield Delta(usage=answer.usage, prompt_sha256=_hash_of(answer.request.turns))
        if answer.is_begun and not found.continues:
            if not self._restarts or answer.restarts == RETRIES:
                raise Interrupted(
                    "The model’s server cannot go on with an answer that broke off. "
                    "Ask for the rest in a new message."
                )
            answer.begin_again()
            yield Delta(restart=True)
        emitted = await self._recall(peer, answer)
        end = self._end_of(answer)
        if end:
            yield answer.finish(end)
            return
        async with aclosing(self._write(peer, answer, answer.prompt, emitted)) as deltas:
            async for delta in deltas:
                yield delta

    async def _prompt(self, peer: Peer, turns: Sequence[Turn]) -> Prompt:
        prompt = await peer.flavour.prompt(turns)
        room = self.capacity().context_tokens
        if prompt.ids and prompt.tokens >= room:
            raise RequestRefused(f"The prompt has {prompt.tokens} tokens; this model reads {room}.")
        return prompt

    async def _recall(self, peer: Peer, answer: Answer) -> tuple[int, ...]:
        """The tokens to go on after. A stop string may have begun in those of an earlier run."""
        if not peer.flavour.has_ids:
            # What is shown holds no part of a stop string; what was held back comes again.
            answer.assembler = TextAssembler(stop=answer.request.sampling.stop)
            return ()
        emitted, text = await _whole_characters(peer, answer.ids)
        if not answer.knows_text:
            answer.assembler.add(text)
            answer.knows_text = True
        return emitted

    def _end_of(self, answer: Answer) -> FinishReason | None:
        if answer.assembler.stopped:
            return "stop"
        if answer.made >= answer.request.sampling.max_tokens:
            return "length"
        return "context" if answer.is_begun and self._room(answer) <= 0 else None

    def _room(self, answer: Answer) -> int:
        return self.capacity().context_tokens - answer.usage.prompt - answer.made

    async def _write(
        self, peer: Peer, answer: Answer, prompt: Prompt, emitted: tuple[int, ...]
    ) -> AsyncGenerator[Delta, None]:
        asked, room = answer.request.sampling.max_tokens - answer.made, self._room(answer)
        order = Order(
            prompt=prompt,
            sampling=answer.request.sampling,
            scope=answer.request.scope,
            tokens=max(1, min(asked, room)),
            emitted=emitted,
            text=answer.text if not peer.flavour.has_ids else "",
        )
        answer.begins_part()
        held: list[int] = []
        moved, patience = time.monotonic(), FIRST_SECONDS
        async with aclosing(peer.flavour.write(order)) as pieces:
            async for piece in pieces:
                held += piece.token_ids
                if piece.text or piece.token_ids or piece.is_progress:
                    moved = time.monotonic()
                    patience = FIRST_SECONDS if piece.is_progress else NEXT_SECONDS
                elif not piece.finish and time.monotonic() - moved > patience:
                    raise Unavailable("The model's server talks without saying anything.")
                if answer.is_too_long_with(piece.text):
                    raise Unavailable("The model's server sends more than it was asked for.")
                if piece.text:
                    # Tokens wait for their text: what breaks off between them is made again.
                    yield answer.add(piece.text, held)
                    held = []
                too_many = answer.made_in_part + len(held) > order.tokens + SLACK
                if answer.assembler.stopped or too_many:
                    yield answer.finish("stop" if answer.assembler.stopped else "length")
                    return
                if piece.finish:
                    answer.learn(piece.usage)
                    for delta in self._ending(answer, piece, held):
                        yield delta
                    return
        raise Unavailable("The model's server broke off in the middle of the answer.")

    def _ending(self, answer: Answer, piece: Piece, held: list[int]) -> list[Delta]:
        """The last deltas, now that the server has said how it ended."""
        held = held[:-1] if piece.ends_with_mark else held
        deltas = [answer.add("", held)] if held else []
        reason = piece.finish or "end"
        if reason == "length" and answer.made < answer.request.sampling.max_tokens:
            reason = "context" if self._room(answer) <= SLACK else "length"
        return [*deltas, answer.finish(reason)]

    # --- the rest of an engine ------------------------------------------------------------
    async def count_tokens(self, turns: Sequence[Turn]) -> int:
        return (await self._ask(lambda peer: peer.flavour.prompt(turns))).tokens

    async def text_of(self, token_ids: Sequence[int]) -> str:
        return await self._ask(lambda peer: peer.flavour.text_of(token_ids))

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        check(texts)
        vectors: list[list[float]] = []
        for begin in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[begin : begin + TEXTS_AT_ONCE]
            vectors += await self._ask(lambda peer, part=part: peer.flavour.embed(part))  # type: ignore[misc]
        return units(vectors)

    async def _ask(self, work: Callable[[Peer], Awaitable[T]]) -> T:
        """Something any server can do, and can do again."""
        for failures in range(1, RETRIES + 2):
            try:
                async with self._backends.lease("") as peer:
                    await peer.describe()
                    return await work(peer)
            except Unavailable:
                if failures > RETRIES:
                    raise
            await self._wait(failures)
        raise AssertionError("unreachable")

    def capacity(self) -> Capacity:
        """Servers that are not there offer nothing, so that what is queued waits for them."""
        peers = self._backends.peers
        slots = sum(p.backend.slots for p in peers if p.is_usable and p.is_described)
        rooms = [p.found.context_tokens for p in peers if p.found and p.found.context_tokens]
        return Capacity(slots, min([self._context_tokens, *rooms]), self._backends.busy)

    def fingerprint(self) -> str:
        found = [(peer.backend.kind, peer.found) for peer in self._backends.peers]
        told = {f"{kind} {it.model} {it.build}" if it else kind for kind, it in found}
        return f"upstream {', '.join(sorted(told))}"

    def troubles(self) -> dict[str, str]:
        """Of every server, by name: why it is not used now, or ""."""
        return {peer.backend.name: peer.trouble for peer in self._backends.peers}

    def seconds_without_progress(self) -> float:
        return 0.0  # every wait for a server has an end of its own

    def most_seconds_without_progress(self) -> float:
        return PREFILL_SECONDS


def _hash_of(turns: Sequence[Turn]) -> str:
    """Of what was asked, not of token ids: those are each server's own business."""
    return hashlib.sha256(repr([(turn.role, turn.content) for turn in turns]).encode()).hexdigest()


async def _whole_characters(peer: Peer, ids: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """These tokens and their text, without half a character at the end.

    A server may send its tokens along with the text before it; the one that goes on has to
    make all of the character, since it shows nothing of half a one.
    """
    whole = text = await peer.flavour.text_of(ids) if ids else ""
    for cut in range(1, min(LONGEST_CHARACTER, len(ids) + 1)):
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            return tuple(ids[: len(ids) - cut + 1]), text
        text = await peer.flavour.text_of(ids[:-cut])
    return tuple(ids), whole


def _given_up(error: Unavailable, answer: Answer) -> EngineError:
    return Interrupted(str(error)) if answer.is_begun else error
