"""llama.cpp's own server, spoken to in token ids."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import PurePath
from typing import Any

from inference.engines.base import FinishReason, Turn
from inference.engines.flavours import (
    FIRST_SECONDS,
    NEXT_SECONDS,
    Found,
    Order,
    Piece,
    Prompt,
    WithIds,
    count_in,
    expect,
    ids_in,
)
from inference.engines.template import ChatTemplate, Segment

PROGRESS = "prompt_progress"


class LlamaServer(WithIds):
    async def describe(self) -> Found:
        props = await self._server.get("/props")
        settings = expect(dict, props.get("default_generation_settings"))
        bos, eos = str(props.get("bos_token", "")), str(props.get("eos_token", ""))
        source = str(props.get("chat_template", ""))
        self._template = await asyncio.to_thread(ChatTemplate, source, bos, eos)
        added = await self._tokens("", add_special=True)
        # An end may be added as well, which is not wanted.
        self._bos = added[:1] if added[:1] == await self._tokens(bos, parse_special=True) else ()
        return Found(
            model=PurePath(str(props.get("model_alias") or props.get("model_path", ""))).name,
            context_tokens=count_in(settings.get("n_ctx")),
            slots=count_in(props.get("total_slots")),
            build=f"llama.cpp {props.get('build_info', '')}",
            continues=True,
        )

    async def prompt(self, turns: Sequence[Turn]) -> Prompt:
        segments = await asyncio.to_thread(self._template.segments, turns)
        ids = await self.ids_of(segments)
        if tuple(ids[:1]) != self._bos:
            ids = [*self._bos, *ids]
        return Prompt(tuple(turns), tuple(ids), len(ids))

    async def tokenize(self, segment: Segment) -> tuple[int, ...]:
        if segment.trusted:
            return await self._tokens(segment.text, parse_special=True)
        ids, names = await self._named_tokens(segment.text)
        if (name := segment.named(names)) is None:
            return ids
        return tuple(await self.ids_of(segment.broken_up(name)))

    async def _named_tokens(self, text: str) -> tuple[tuple[int, ...], list[str]]:
        """Some control tokens are "user-defined", which are found in any text."""
        body = {"content": text, "parse_special": False, "with_pieces": True}
        answer = await self._server.post("/tokenize", body)
        tokens = [expect(dict, token) for token in expect(list, answer.get("tokens"))]
        ids = tuple(count_in(token.get("id")) for token in tokens)
        # Bytes that are no whole character come as a list of numbers.
        return ids, [str(token.get("piece")) for token in tokens]

    async def _tokens(
        self, text: str, *, parse_special: bool = False, add_special: bool = False
    ) -> tuple[int, ...]:
        body = {"content": text, "parse_special": parse_special, "add_special": add_special}
        return ids_in((await self._server.post("/tokenize", body)).get("tokens"))

    async def text_of(self, ids: Sequence[int]) -> str:
        answer = await self._server.post("/detokenize", {"tokens": list(ids)})
        return expect(str, answer.get("content"))

    async def write(self, order: Order) -> AsyncGenerator[Piece, None]:
        told, last, read = 0, Piece(), -1
        stream = self._server.stream(
            "/completion", _body(order), FIRST_SECONDS, NEXT_SECONDS, prelude=PROGRESS
        )
        async with aclosing(stream) as events:
            async for event in events:
                if PROGRESS in event:
                    done = count_in(expect(dict, event[PROGRESS]).get("processed", 0))
                    yield Piece(is_progress=done > read)
                    read = max(read, done)
                    continue
                made = count_in(event.get("tokens_predicted"))
                if event.get("stop"):
                    yield _end(event, mark_was_told=made == told and not last.text)
                    return
                last = Piece(expect(str, event.get("content")), ids_in(event.get("tokens")))
                if last.text and made - told > len(last.token_ids):
                    # Of a character that took several tokens it tells the last one only.
                    last = Piece(last.text, await self._spelled(last.text))
                told = made
                yield last

    async def _spelled(self, text: str) -> tuple[int, ...]:
        """Tokens that make this text; some vocabularies put a space before every text."""
        ids = await self._tokens(text)
        is_right = await self.text_of(ids) == text
        return ids if is_right or await self.text_of(ids[1:]) != text else ids[1:]


def _body(order: Order) -> dict[str, Any]:
    sampling = order.sampling
    return {
        "prompt": [*order.prompt.ids, *order.emitted],
        "stream": True,
        "return_tokens": True,
        # It notices that we have gone only when it writes, in a long prompt too.
        "return_progress": True,
        "n_predict": order.tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_window,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": [list(pair) for pair in sampling.logit_bias],
        "seed": order.seed % (2**32 - 1),  # the largest number would mean any seed
        "cache_prompt": bool(order.scope),
    }


def _end(event: dict[str, Any], mark_was_told: bool) -> Piece:
    is_end = event.get("stop_type") == "eos"
    at_limit: FinishReason = "context" if event.get("truncated") else "length"
    # How much of the prompt it knew is not passed on: everybody shares its cache, so that would
    # tell what others have asked.
    return Piece(finish="end" if is_end else at_limit, ends_with_mark=is_end and mark_was_told)
