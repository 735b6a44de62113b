"""The header of a GGUF model file, read with bounds on everything before any C code sees it.

The format is described in docs/gguf.md of ggml. No Django here.
"""

import hashlib
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from inference.engines.base import EngineError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 128 << 20
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_STRINGS = 4_000_000  # of all lists: the largest vocabularies and their merges have a million
MAX_NAME_BYTES = 65_535
MAX_TEXT_BYTES = 16 << 20  # of one that is kept
MAX_TEMPLATE_BYTES = 1 << 20
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
# ggml's tensor types: numbers in a block, bytes of a block.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """What a model file says of itself; lists (the vocabulary) are checked, not kept."""

    version: int
    tensors: int
    metadata: dict[str, Any] = field(repr=False)
    formats: frozenset[int] = frozenset()  # ggml's numbers of its tensors' types

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def context_tokens(self) -> int:
        """How many tokens the model was trained to see at once; 0 when it does not say."""
        found = self.metadata.get(f"{self.architecture}.context_length", 0)
        return found if isinstance(found, int) else 0

    @property
    def template(self) -> str:
        return str(self.metadata.get("tokenizer.chat_template", ""))

    @property
    def template_sha256(self) -> str:
        return hashlib.sha256(self.template.encode()).hexdigest()


def read_header(path: Path) -> Header:
    """Raises EngineError with one sentence for anything that is not a whole, sane model file."""
    try:
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size).header()
    except OSError as error:
        raise EngineError(
            f"The model file {path.name} cannot be read: {error.strerror}."
        ) from error
    except _Broken as broken:
        raise EngineError(f"{path.name} {broken}.") from None


class _Broken(Exception):
    """The end of a sentence that begins with the file's name."""


class _Reader:
    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self._position = 0
        self._strings = 0
        self._formats: set[int] = set()

    def header(self) -> Header:
        if self._take(4) != MAGIC:
            raise _Broken("is not a model file in the GGUF format")
        version = self._number("I")
        if version not in VERSIONS:
            raise _Broken(f"is of a GGUF version this site cannot read ({version})")
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise _Broken("is broken: its counts cannot be right")
        metadata = self._metadata(keys)
        self._check_tensors(tensors, _alignment(metadata))
        header = Header(version, tensors, metadata, frozenset(self._formats))
        _check_meaning(header)
        return header

    # --- pieces ---------------------------------------------------------------------------
    def _take(self, count: int) -> bytes:
        self._position += count
        if self._position > self._size:
            raise _Broken("is broken: it ends before its header does")
        if self._position > MAX_HEADER_BYTES:
            raise _Broken("is broken: its header is larger than any model needs")
        return self._file.read(count)

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _string(self, most: int = MAX_HEADER_BYTES) -> bytes:
        length: int = self._number("Q")
        if length > most:
            raise _Broken("is broken: a text in it is too long")
        return self._take(length)

    def _name(self) -> str:
        return self._string(MAX_NAME_BYTES).decode(errors="replace")

    # --- parts ----------------------------------------------------------------------------
    def _metadata(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._name()
            if key in found:
                raise _Broken(f"is broken: it says {key[:60]!r} twice")
            found[key] = self._value(self._number("I"))
        return found

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string(MAX_TEXT_BYTES).decode(errors="replace")
        if kind == ARRAY:
            return self._skip_list(self._number("I"), self._number("Q"))
        return self._number(self._code(kind))

    def _skip_list(self, kind: int, count: int) -> None:
        if kind != STRING:
            self._take(count * struct.calcsize(f"<{self._code(kind)}"))
            return
        self._strings += count
        if self._strings > MAX_STRINGS:
            raise _Broken("is broken: its vocabulary is larger than any model's")
        for _ in range(count):
            self._string()

    def _code(self, kind: int) -> str:
        if kind not in SCALARS:  # lists of lists included: llama.cpp has none either
            raise _Broken(f"is broken: it has a value of an unknown kind ({kind})")
        return SCALARS[kind]

    def _check_tensors(self, count: int, alignment: int) -> None:
        """Every tensor's numbers lie inside the file, after the header, and have a name."""
        names: set[str] = set()
        end = 0
        for _ in range(count):
            name = self._name()
            if name in names:
                raise _Broken(f"is broken: it has the tensor {name[:60]!r} twice")
            names.add(name)
            end = max(end, self._tensor_end(alignment))
        start = -(-self._position // alignment) * alignment
        if count and start + end > self._size:
            raise _Broken("is cut short: it is smaller than its header says")

    def _tensor_end(self, alignment: int) -> int:
        """Where the tensor read next ends, in bytes after the header."""
        rank = self._number("I")
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise _Broken("is broken: a tensor has an impossible shape")
        shape = struct.unpack(f"<{rank}Q", self._take(8 * rank))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in BLOCKS:
            raise _Broken(f"has numbers in a form this site cannot read (type {kind})")
        self._formats.add(kind)
        block, size = BLOCKS[kind]
        if min(shape) < 1 or shape[0] % block or offset % alignment:
            raise _Broken("is broken: a tensor has an impossible shape or place")
        end: int = offset + math.prod(shape) // block * size
        return end


def _alignment(metadata: dict[str, Any]) -> int:
    found = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(found, int) or found & (found - 1) or not 8 <= found <= 1 << 20:
        raise _Broken("is broken: its alignment is not a power of two")
    power: int = found
    return power


def _check_meaning(header: Header) -> None:
    if not header.architecture or not header.tensors:
        raise _Broken("is broken: it does not say what model it is")
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise _Broken("is one part of a split model; join the parts with llama-gguf-split")
    if len(header.template.encode()) > MAX_TEMPLATE_BYTES:
        raise _Broken("is broken: its chat template is larger than any model's")
