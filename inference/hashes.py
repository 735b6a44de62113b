"""SHA-256 of files too large for memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20


def sha256_of(path: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> str:
    """In hexadecimal. `advance` is called with bytes so far and bytes in all."""
    total, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            advance(done, total)
    return digest.hexdigest()
