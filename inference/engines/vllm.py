"""vLLM's server, spoken to in token ids."""

import hashlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from inference.engines.base import RequestRefused, Turn
from inference.engines.flavours import (
    FIRST_SECONDS,
    NEXT_SECONDS,
    Found,
    Order,
    Piece,
    Prompt,
    WithIds,
    choices_in,
    count_in,
    expect,
    finish_of,
    ids_in,
    usage_in,
)
from inference.engines.outbound import Server
from inference.engines.template import (
    LAYOUTS,
    Layout,
    Segment,
    filled,
    layout_of,
    looks_like_control,
    marks_for,
)


class Vllm(WithIds):
    def __init__(self, server: Server, model: str) -> None:
        super().__init__(server, model)
        self._layouts: dict[tuple[str, ...], Layout | None] = {}

    async def describe(self) -> Found:
        entry = await self.listed()
        version = (await self._server.get("/version")).get("version", "")
        return Found(
            model=self._model,
            context_tokens=count_in(entry.get("max_model_len", 0)),
            build=f"vLLM {version}",
            continues=True,
        )

    async def prompt(self, turns: Sequence[Turn]) -> Prompt:
        layout = await self._layout(tuple(turn.role for turn in turns))
        if layout is None:
            await self._refuse_control(turns)
            ids = await self._rendered(turns)
        else:
            ids = tuple(await self.ids_of(filled(layout, turns)))
        return Prompt(tuple(turns), ids, len(ids))

    async def _layout(self, roles: tuple[str, ...]) -> Layout | None:
        """How the prompt for these roles is laid out; None where that cannot be had.

        vLLM does not tell its template, but what it makes: that is run over marks nobody can
        guess, and its tokens are turned back into text, which must give the same tokens again.
        """
        if roles not in self._layouts:
            marks = marks_for(roles)
            ids = await self._rendered(list(map(Turn, roles, marks)))
            text = await self.text_of(ids)
            is_whole = all(text.count(mark) == 1 for mark in marks)
            is_same = is_whole and (await self._tokens(text))[0] == ids
            if len(self._layouts) >= LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            self._layouts[roles] = layout_of(text, marks) if is_same else None
        return self._layouts[roles]

    async def _rendered(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        body = {"model": self._model, "messages": messages, "add_generation_prompt": True}
        return ids_in((await self._server.post("/tokenize", body)).get("tokens"))

    async def _refuse_control(self, turns: Sequence[Turn]) -> None:
        """Where contents cannot be told from the template's own text, none may name a token."""
        for turn in turns:
            _, names = await self._tokens(turn.content)
            if any(name in turn.content for name in filter(looks_like_control, names)):
                raise RequestRefused("This text has a control token of the model in it.")

    async def tokenize(self, segment: Segment) -> tuple[int, ...]:
        ids, names = await self._tokens(segment.text)
        if segment.trusted or (name := segment.named(names)) is None:
            return ids
        return tuple(await self.ids_of(segment.broken_up(name)))

    async def _tokens(self, text: str) -> tuple[tuple[int, ...], list[str]]:
        body = {
            "model": self._model,
            "prompt": text,
            "add_special_tokens": False,
            "return_token_strs": True,
        }
        answer = await self._server.post("/tokenize", body)
        return ids_in(answer.get("tokens")), expect(list, answer.get("token_strs") or [])

    async def text_of(self, ids: Sequence[int]) -> str:
        body = {"model": self._model, "tokens": list(ids)}
        return expect(str, (await self._server.post("/detokenize", body)).get("prompt"))

    async def write(self, order: Order) -> AsyncGenerator[Piece, None]:
        finish, usage = None, None
        stream = self._server.stream(
            "/v1/completions", _body(order, self._model), FIRST_SECONDS, NEXT_SECONDS
        )
        async with aclosing(stream) as events:
            async for event in events:
                usage = usage_in(event) or usage
                for choice in choices_in(event):
                    finish = choice.get("finish_reason") or finish
                    ids = ids_in(choice.get("token_ids") or [])
                    # What stopped it is a token, and the last one.
                    yield Piece(
                        expect(str, choice.get("text")), ids[:-1] if finish == "stop" else ids
                    )
        if finish:
            yield Piece(finish=finish_of(finish), usage=usage)


def _body(order: Order, model: str) -> dict[str, Any]:
    sampling = order.sampling
    salt = hashlib.sha256(order.scope.encode()).hexdigest() if order.scope else ""
    return {
        "model": model,
        "prompt": [*order.prompt.ids, *order.emitted],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "max_tokens": order.tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p or 1e-9,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repeat_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "seed": order.seed % 2**63,
        "cache_salt": salt or secrets.token_hex(32),
    }
