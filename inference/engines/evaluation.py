"""How a prompt is evaluated: in which pieces. The arithmetic depends on it, so it is kept.

Measured (docs/architecture.md): a token's values are the same to the bit whoever else is
in the batch, in whatever slot and on however many threads, but a token evaluated alone in a
step differs in the last bits from one evaluated in a prompt chunk. A run that continues
therefore repeats the pieces.

Pieces are written as run lengths: n is one chunk of n tokens, -n is n tokens one a step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def chunks(tokens: int, size: int) -> list[int]:
    """Cut a number of tokens into chunks of `size`; a last one of 1 joins the one before it."""
    full, rest = divmod(tokens, size)
    if rest == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size] * full + ([rest] if rest else [])


@dataclass(slots=True)
class Evaluated:
    """Tokens in a slot's cache and the pieces by which they got there."""

    tokens: list[int] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)

    def add_chunk(self, tokens: Iterable[int]) -> None:
        before = len(self.tokens)
        self.tokens.extend(tokens)
        self.pieces.append(len(self.tokens) - before)

    def add_step(self, token: int) -> None:
        self.tokens.append(token)
        if self.pieces and self.pieces[-1] < 0:
            self.pieces[-1] -= 1
        else:
            self.pieces.append(-1)

    def keep(self, prompt: Sequence[int], pieces: Sequence[int] | None) -> "Evaluated":
        """The part that can serve `prompt` (evaluated as `pieces`, if that is fixed).

        Always leaves at least two tokens to evaluate: the last one's logits are wanted,
        and a chunk of one would take the other path.
        """
        room = _common(self.tokens, prompt[:-2])
        kept = Evaluated()
        wanted = iter(self.pieces if pieces is None else pieces)
        for piece in self.pieces:
            fixed = next(wanted, 0)
            length = _usable(piece, fixed, room - len(kept.tokens))
            if length:
                start = len(kept.tokens)
                kept.tokens.extend(self.tokens[start : start + length])
                kept.pieces.append(length if piece > 0 else -length)
            if piece != fixed or length < abs(piece):
                break
        return kept


def _usable(piece: int, wanted: int, room: int) -> int:
    """How many tokens of a piece can serve; a chunk counts whole or not at all."""
    if piece > 0:
        return piece if piece == wanted and piece <= room else 0
    return max(0, min(-piece, -wanted, room))


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def remaining(kept: Evaluated, tokens: int, pieces: Sequence[int] | None, size: int) -> list[int]:
    """The pieces still to do so that `tokens` are evaluated, after what was kept."""
    done = len(kept.tokens)
    if pieces is None:
        return chunks(tokens - done, size)
    rest = []
    for piece in pieces:
        length = abs(piece)
        skipped = min(done, length)
        done -= skipped
        if length > skipped:
            rest.append((length - skipped) * (1 if piece > 0 else -1))
    return rest
