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

    @classmethod
    def of(
        cls, turns: Sequence[Turn], left_out: int, cut_characters: int = 0, summary: str = ""
    ) -> "Fitted":
        """These turns, less what did not fit; a system prompt stays, and the summary follows it."""
        first = 1 if turns[0].role == "system" else 0
        said = [Turn("system", summary)] if summary else []
        *kept, newest = [*turns[:first], *said, *turns[first + left_out :]]
        text = newest.content[: len(newest.content) - cut_characters]
        return cls((*kept, replace(newest, content=text)), left_out, cut_characters, summary)


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

    async def fits(fitted: Fitted) -> bool:
        return await engine.count_tokens(fitted.turns) <= room

    if await fits(Fitted(tuple(turns))):
        return Fitted(tuple(turns))
    rest = [turn for number, turn in enumerate(turns) if number or turn.role != "system"]
    drop = await smallest(0, len(rest) - 1, lambda n: fits(Fitted.of(turns, n, 0, summary)))
    while drop < len(rest) - 1 and rest[drop].role != "user":
        drop += 1  # a conversation begins with a person
    kept = Fitted.of(turns, drop, 0, summary)
    if await fits(kept):
        return kept
    longest = len(turns[-1].content)
    cut = await smallest(1, longest, lambda n: fits(Fitted.of(turns, drop, n, summary)))
    return Fitted.of(turns, drop, cut, summary)


async def smallest(low: int, high: int, holds: Callable[[int], Awaitable[bool]]) -> int:
    """The smallest number from low to high for which it holds; `high` when it never does."""
    while low < high:
        middle = (low + high) // 2
        if await holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
