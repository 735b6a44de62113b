"""Small GGUF files, right or wrong in one place, for tests."""

import struct
from typing import Any

import numpy as np

STRING, ARRAY, UINT32, INT32, FLOAT = 8, 9, 4, 5, 6


def string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key: str, value: Any) -> bytes:
    """A key and its value: a text, a number, or a list of texts, or of numbers."""
    if isinstance(value, str):
        return string(key) + struct.pack("<I", STRING) + string(value)
    if isinstance(value, float):
        return string(key) + struct.pack("<If", FLOAT, value)
    if isinstance(value, list) and value and not isinstance(value[0], str):
        numbers = np.array(value, np.float32 if isinstance(value[0], float) else np.int32)
        kind = FLOAT if isinstance(value[0], float) else INT32
        return string(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + numbers.tobytes()
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


# --- whole models, so small that they are loaded and used in a moment ------------------------
WIDTH, INNER = 64, 128
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}assistant:"


def whole(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A file with small random numbers in its matrices, and ones in its vectors."""
    some, tensors, weights = np.random.default_rng(1), [], b""
    for name, shape in shapes.items():
        tensors.append(tensor(name, shape, offset=len(weights)))
        numbers = np.ones(shape) if len(shape) == 1 else some.normal(0, 0.05, shape)
        weights += numbers.astype(np.float32).tobytes()
    return gguf(metadata, tuple(tensors), weights=weights)


def llama_that_knows(characters: str) -> bytes:
    """A model of one layer whose vocabulary has these characters, and none for any other byte."""
    words = ["<unk>", "<s>", "</s>", *characters]
    metadata = {
        "general.architecture": "llama", "llama.context_length": 2048,
        "llama.embedding_length": WIDTH, "llama.block_count": 1,
        "llama.feed_forward_length": INNER, "llama.attention.head_count": 2,
        "llama.rope.dimension_count": 32, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [0.0] * len(words),
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * len(characters),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH), "attn_v": (WIDTH, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (WIDTH, INNER), "ffn_up": (WIDTH, INNER),
        "ffn_down": (INNER, WIDTH), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
    }  # fmt: skip
    vocabulary = (WIDTH, len(words))
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": vocabulary, "output.weight": vocabulary,
        "output_norm.weight": (WIDTH,),
    }  # fmt: skip
    return whole(metadata, shapes | {f"blk.0.{name}.weight": it for name, it in layer.items()})


def gpt2_with_places(count: int) -> bytes:
    """A model of one layer that has learned so many places, and knows bytes only."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [256 + number for number in range(256 - len(seen))]
    words = [*map(chr, [*seen, *others]), "<|endoftext|>", "aa"]
    metadata = {
        "general.architecture": "gpt2", "gpt2.context_length": count,
        "gpt2.embedding_length": WIDTH, "gpt2.block_count": 1, "gpt2.feed_forward_length": INNER,
        "gpt2.attention.head_count": 2, "gpt2.attention.layer_norm_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [1] * 256 + [3, 1],
        "tokenizer.ggml.merges": ["a a"], "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 256, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (WIDTH, len(words)), "position_embd.weight": (WIDTH, count),
        "output_norm.weight": (WIDTH,), "output_norm.bias": (WIDTH,),
    }  # fmt: skip
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_qkv": (WIDTH, 3 * WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_up": (WIDTH, INNER), "ffn_down": (INNER, WIDTH),
    }  # fmt: skip
    for name, shape in layer.items():
        shapes[f"blk.0.{name}.weight"] = shape
        shapes[f"blk.0.{name}.bias"] = shape[-1:]
    return whole(metadata, shapes)
