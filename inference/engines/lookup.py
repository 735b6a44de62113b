"""Guesses the next tokens from what the text said before, so that one call can check several.

An answer that quotes its question or repeats itself goes on as the earlier place did. The
guesses are evaluated together with the last token; each is kept only if it is the very token
that would have been chosen, so the answer is the same with and without (a token's values do
not depend on how it was evaluated: docs/architecture.md). Prompt lookup decoding: Saxena 2023.
"""

from collections.abc import Sequence

LONGEST_MATCH = 4  # tokens
SHORTEST_MATCH = 2
FIRST_GUESS = 3
LONGEST_GUESS = 12
REST = 24  # tokens without a guess after guesses that came to nothing


class Lookup:
    """Remembers where each pair of tokens was followed; grows with the text of one run."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._seen = 0
        self._length = FIRST_GUESS
        self._resting = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow; none when the text gives no hint."""
        self._index(tokens)
        if self._resting:
            self._resting -= 1
            return []
        end = self._last_match(tokens)
        return list(tokens[end : end + min(self._length, most)]) if end else []

    def judge(self, guessed: int, right: int) -> None:
        """Longer guesses after right ones, shorter after wrong ones, a rest when they fail."""
        if not guessed:
            return
        if right == guessed:
            self._length = min(2 * self._length, LONGEST_GUESS)
        elif right == 0:
            self._length = max(self._length // 2, 1)
            if self._length == 1:
                self._resting, self._length = REST, FIRST_GUESS
        else:
            self._length = max(right, FIRST_GUESS)

    def _index(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that are new, except the very end, which would match itself."""
        for end in range(max(self._seen, SHORTEST_MATCH), len(tokens)):
            key = tuple(tokens[end - SHORTEST_MATCH : end])
            self._ends.setdefault(key, []).append(end)
        self._seen = max(self._seen, len(tokens))

    def _last_match(self, tokens: Sequence[int]) -> int:
        """The latest place where the last tokens stood before, the longest match first; 0: none."""
        best, best_length = 0, 0
        for end in reversed(self._ends.get(tuple(tokens[-SHORTEST_MATCH:]), ())):
            length = _common_end(tokens, end)
            if length > best_length:
                best, best_length = end, length
            if length == LONGEST_MATCH:
                break
        return best


def _common_end(tokens: Sequence[int], end: int) -> int:
    """How many tokens before `end` equal the last ones, up to LONGEST_MATCH."""
    length = 0
    while length < min(LONGEST_MATCH, end) and tokens[end - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
