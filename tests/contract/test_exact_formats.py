"""A token's values are the same to the bit however it is evaluated, in every format of weights.

llama.cpp alone does not do that for K-quants (inference/kernels, docs/architecture.md).
"""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import pytest

from inference.engines.llama_library import Context, Entry, Weights
from tests.contract.conftest import model_file
from tests.inference.test_kernels import FITS

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not FITS, reason="for x86 processors with AVX2 only"),
]

# ggml's numbers of formats, by the tensors that are to have them. K-quants need rows of a
# multiple of 256 numbers, which only ffn_down has here: a format for each few layers.
Q4_0, Q4_1, Q5_0, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS = (
    2, 3, 6, 8, 10, 11, 12, 13, 14, 20, 23,
)  # fmt: skip
PLAIN = {b"attn_q": Q4_0, b"attn_k": IQ4_NL, b"attn_v": Q4_1, b"attn_out": Q5_0, b"ffn_up": Q8_0}
MIXED = PLAIN | {
    rb"blk\.1.\.ffn_down": Q6_K, rb"blk\.2.\.ffn_down": Q5_K, rb"blk\.[0-3]\.ffn_down": Q2_K,
    rb"blk\.[4-6]\.ffn_down": Q3_K, rb"blk\.[7-9]\.ffn_down": IQ4_XS,
}  # fmt: skip
WITH_Q4_K = {b"attn_q": Q4_0, b"ffn_down": Q4_K}
TOKENS = [100 + (i * i * 31 + i * 7) % 20_000 for i in range(90)]


def file_with(formats: dict[bytes, int], folder: Path) -> Path:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
    kind = llama_cpp.llama_model_tensor_override
    rules = [*formats.items(), (None, 0)]
    parameters.tt_overrides = (kind * len(rules))(*(kind(*rule) for rule in rules))
    target = folder / "mixed.gguf"
    source, written = str(model_file()).encode(), str(target).encode()
    assert llama_cpp.llama_model_quantize(source, written, ctypes.byref(parameters)) == 0
    return target


@pytest.fixture(params=[MIXED, WITH_Q4_K], ids=["all but Q4_K", "Q4_K"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    weights = Weights(file_with(request.param, tmp_path), lambda percent: None)
    made = Context(weights, 3, 256, 96)
    made.use_threads(1)  # more would take the spinning from other tests' engines
    yield made
    made.free()
    weights.free()


def evaluated(context: Context, slot: int, sizes: Sequence[int]) -> list[bytes]:
    """The logits of each token, as bytes, evaluated in calls of these sizes."""
    found: list[bytes] = []
    for size in sizes:
        entries = [
            Entry(token, len(found) + i, slot, wanted=True)
            for i, token in enumerate(TOKENS[len(found) : len(found) + size])
        ]
        rows = context.decode(entries)
        assert rows
        found.extend(row.tobytes() for row in rows)
    return found


def test_each_token_alone_in_chunks_or_beside_others_comes_out_the_same(context: Context):
    alone = evaluated(context, 0, [1] * len(TOKENS))
    assert len(set(alone)) == len(TOKENS)
    assert evaluated(context, 1, [len(TOKENS)]) == alone
    assert evaluated(context, 2, [64, 1, 17, 2, 5, 1]) == alone
    for slot in range(3):
        context.forget(slot, 0)
    for position in range(20):
        entries = [Entry(TOKENS[position + 3 * s], position, s, wanted=True) for s in range(3)]
        rows = context.decode(entries)
        assert rows
        assert rows[0].tobytes() == alone[position]
