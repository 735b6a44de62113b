"""Any server with OpenAI's chat completions: it tells no token ids, so text is all there is."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from inference.engines.base import EngineError, RequestRefused, Turn
from inference.engines.flavours import (
    FIRST_SECONDS,
    NEXT_SECONDS,
    Common,
    Found,
    Order,
    Piece,
    Prompt,
    choices_in,
    expect,
    finish_of,
    usage_in,
)
from inference.engines.text import estimated_tokens

CONTINUING = ("llamacpp", "vllm")  # who goes on with a last message of the assistant's


class OpenAI(Common):
    has_ids = False
    health = "/v1/models"

    async def check_health(self) -> None:
        try:
            await super().check_health()
        except RequestRefused:
            return  # it has no list of models, but it answers

    async def describe(self) -> Found:
        try:
            entry = await self.listed()
        except RequestRefused:
            entry = {}
        return Found(self._model, continues=entry.get("owned_by") in CONTINUING)

    async def prompt(self, turns: Sequence[Turn]) -> Prompt:
        about = sum(estimated_tokens(turn.content) + 4 for turn in turns)
        return Prompt(tuple(turns), (), about)

    async def text_of(self, ids: Sequence[int]) -> str:
        raise EngineError("This server knows nothing of token ids.")

    async def write(self, order: Order) -> AsyncGenerator[Piece, None]:
        finish, usage = None, None
        stream = self._server.stream(
            "/v1/chat/completions", _body(order, self._model), FIRST_SECONDS, NEXT_SECONDS
        )
        async with aclosing(stream) as events:
            async for event in events:
                # Who else shares its cache is not known: how much it knew would tell of others.
                usage = replace(told, cached=0) if (told := usage_in(event)) else usage
                for choice in choices_in(event):
                    finish = choice.get("finish_reason") or finish
                    delta = expect(dict, choice.get("delta") or {})
                    thinks = bool(delta.get("reasoning_content") or delta.get("reasoning"))
                    yield Piece(expect(str, delta.get("content") or ""), is_progress=thinks)
        if finish:
            yield Piece(finish=finish_of(finish), usage=usage)


def _body(order: Order, model: str) -> dict[str, Any]:
    sampling = order.sampling
    turns = [*order.prompt.turns, *([Turn("assistant", order.text)] if order.text else [])]
    body = {
        "model": model,
        "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": order.tokens,
        "temperature": min(sampling.temperature, 2),
        "top_p": sampling.top_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
        "seed": order.seed % 2**31,
    }
    if order.text:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body
