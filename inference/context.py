"""Fits a conversation into the context window by real token counts, and says what was left out."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from inference.engines.base import Engine, RequestRefused, Turn, Usage


@dataclass(frozen=True, slots=True)
class Fitted:
    """`left_out` oldest messages, and `cut_characters` from the end of the newest, did not fit.

    summary: the system message that stands for those left out; spent: what it took to make it.
    """

    turns: tuple[Turn, ...]
    left_out: int = 0
    cut_characters: int = 0
    summary: str = ""
    spent: Usage = field(default_factory=Usage)


async def fit(
    engine: Engine, turns: Sequence[Turn], answer_tokens: int, inherited: int = 0, summary: str = ""
) -> Fitted:
    """Keep the system prompt and the newest turns, with room for `answer_tokens`.

    The room is a quarter of the window at most, besides `inherited` tokens of an answer that
    is lengthened. `summary` stands in the place of what is left out. The result depends on
    nothing but the arguments, so a takeover arrives at the same prompt. Raises RequestRefused
    when the answer has filled the window by itself.
    """
    window = engine.capacity().context_tokens
    room = window - inherited - min(answer_tokens, window // 4)
    if room < window // 8:
        raise RequestRefused(
            "This answer has filled the model’s memory. Ask for the rest in a new message."
        )

    async def fits(candidate: Sequence[Turn]) -> bool:
        return await engine.count_tokens(candidate) <= room

    if await fits(turns):
        return Fitted(tuple(turns))
    system = [turn for turn in turns[:1] if turn.role == "system"]
    rest = list(turns[len(system) :])
    system += [Turn("system", summary)] if summary else []
    drop = await smallest(0, len(rest) - 1, lambda n: fits([*system, *rest[n:]]))
    while drop < len(rest) - 1 and rest[drop].role != "user":
        drop += 1  # a conversation begins with a person
    kept = [*system, *rest[drop:]]
    if await fits(kept):
        return Fitted(tuple(kept), drop, summary=summary)
    cut, shortened = await _cut_newest(kept, fits)
    return Fitted(tuple(shortened), drop, cut, summary)


async def _cut_newest(
    turns: list[Turn], fits: Callable[[Sequence[Turn]], Awaitable[bool]]
) -> tuple[int, list[Turn]]:
    newest = turns[-1]

    def shortened(cut: int) -> list[Turn]:
        kept = newest.content[: len(newest.content) - cut]
        return [*turns[:-1], replace(newest, content=kept)]

    cut = await smallest(1, len(newest.content), lambda n: fits(shortened(n)))
    return cut, shortened(cut)


async def smallest(low: int, high: int, holds: Callable[[int], Awaitable[bool]]) -> int:
    """The smallest number from low to high for which it holds; `high` when it never does."""
    while low < high:
        middle = (low + high) // 2
        if await holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
