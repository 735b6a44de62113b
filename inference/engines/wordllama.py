"""Embeddings in this process: 256 numbers for each token, out of the package wordllama.

A text's vector is the mean of its tokens'. The package's two files are read where they lie and
its code is not run: that would bring more HTTP clients, a way to download, and the whole table
in memory at twice its size.
"""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from inference.engines.base import (
    DECODE_SECONDS,
    Capacity,
    Delta,
    EngineError,
    Progress,
    Request,
    Turn,
)
from inference.engines.vectors import CHARACTERS, check, units
from inference.hashes import sha256_of

PACKAGE = "wordllama"
WEIGHTS = "wordllama/weights/l2_supercat_256.safetensors"
TOKENIZER = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"
TENSOR = "embedding.weight"


class WordLlamaEngine:
    """weights_sha256: what the table must hash to; "" takes any."""

    def __init__(self, weights_sha256: str = "") -> None:
        self._wanted = weights_sha256
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embeddings")
        self._fingerprint = PACKAGE
        self._busy = 0

    async def start(self, progress: Progress) -> None:
        progress(0)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)
        progress(100)

    def _load(self) -> None:
        try:
            package = distribution(PACKAGE)
            weights, tokenizer = [Path(str(package.locate_file(p))) for p in (WEIGHTS, TOKENIZER)]
            hashes = [sha256_of(path) for path in (weights, tokenizer)]
            self._table = _table(weights)
        except (PackageNotFoundError, OSError) as error:
            raise EngineError("The package wordllama is not installed whole.") from error
        if self._wanted not in ("", hashes[0]):
            raise EngineError("The package wordllama has other weights than this release.")
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._fingerprint = (
            f"{PACKAGE} {package.version} weights={hashes[0][:12]} tokenizer={hashes[1][:12]}"
        )

    async def stop(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        check(texts)
        gone = threading.Event()  # nobody waits for it any more
        self._busy += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._vectors, tuple(texts), gone)
        finally:
            gone.set()
            self._busy -= 1

    def _vectors(self, texts: Sequence[str], gone: threading.Event) -> list[list[float]]:
        vectors: list[list[float]] = []
        for text in texts:
            if gone.is_set():
                break
            # One by one: no vector depends on what it was asked together with.
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            vectors.append(self._table[ids].mean(axis=0, dtype=np.float32).tolist())
        return units(vectors)

    def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        raise EngineError("This model makes embeddings; it writes no text.")

    async def count_tokens(self, turns: Sequence[Turn]) -> int:
        raise EngineError("This model makes embeddings; it reads no conversations.")

    async def text_of(self, token_ids: Sequence[int]) -> str:
        raise EngineError("This model makes embeddings; it writes no text.")

    def capacity(self) -> Capacity:
        """It has no window; what bounds a text is its length."""
        return Capacity(1, CHARACTERS, self._busy)

    def fingerprint(self) -> str:
        return self._fingerprint

    def seconds_without_progress(self) -> float:
        return 0.0  # bounded work, which no run waits for

    def most_seconds_without_progress(self) -> float:
        return DECODE_SECONDS


def _table(path: Path) -> "np.memmap[Any, np.dtype[np.float16]]":
    """The rows of a safetensors file by token, mapped: only those in use take memory."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))[TENSOR]
    begin = 8 + size + header["data_offsets"][0]
    return np.memmap(path, np.float16, "r", offset=begin, shape=tuple(header["shape"]))
