"""Small GGUF files, right or wrong in one place, for tests."""

import struct
from typing import Any

STRING, ARRAY, UINT32 = 8, 9, 4


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, value: Any) -> bytes:
    """A key and its value: a text, a number, or a list of texts."""
    if isinstance(value, str):
        return string(key) + struct.pack("<I", STRING) + string(value)
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return string(key) + head + b"".join(map(string, value))
    return string(key) + struct.pack("<II", UINT32, value)


def tensor(name: str = "output.weight", shape: tuple[int, ...] = (4, 2), **changed: int) -> bytes:
    facts = {"rank": len(shape), "kind": 0, "offset": 0, **changed}
    head = struct.pack(f"<I{len(shape)}Q", facts["rank"], *shape)
    return string(name) + head + struct.pack("<IQ", facts["kind"], facts["offset"])


METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "tokenizer.chat_template": "{{ messages[0].content }}",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}


def gguf(
    metadata: dict[str, Any] | None = None,
    tensors: tuple[bytes, ...] = (tensor(),),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: int | None = None,
    weights: bytes = bytes(32),
) -> bytes:
    """A model file of one tensor of eight numbers, unless something else is asked for."""
    metadata = METADATA if metadata is None else metadata
    count = len(metadata) if keys is None else keys
    head = magic + struct.pack("<IQQ", version, len(tensors), count)
    head += b"".join(pair(key, value) for key, value in metadata.items()) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + weights
