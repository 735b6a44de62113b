"""What holds for the embeddings of every engine: how much at once, and what a vector is like."""

import math
from collections.abc import Sequence

from inference.engines.errors import EngineError, RequestRefused

TEXTS = 2048
CHARACTERS = 32_000


def check(texts: Sequence[str]) -> None:
    """Raises RequestRefused for too many texts, and for one that is empty, too long or broken."""
    if len(texts) > TEXTS:
        raise RequestRefused(f"{len(texts)} texts are too many at once; the most is {TEXTS}.")
    for number, text in enumerate(texts, 1):
        if not 0 < len(text) <= CHARACTERS:
            raise RequestRefused(
                f"Text {number} has {len(text)} characters; it needs 1 to {CHARACTERS}."
            )
        if not _is_whole(text):
            raise RequestRefused(f"Text {number} holds half a character.")


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair, as JSON can spell it
        return False
    return True


def units(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """These vectors at length 1, so that their dot product is the cosine of their angle.

    Raises EngineError for one without a direction, or when they are not of one kind.
    """
    lengths = [math.hypot(*vector) for vector in vectors]
    if not all(0 < length < math.inf for length in lengths) or len(set(map(len, vectors))) > 1:
        raise EngineError("The model made a vector that cannot be used.")
    return [
        [number / length for number in vector]
        for vector, length in zip(vectors, lengths, strict=True)
    ]
