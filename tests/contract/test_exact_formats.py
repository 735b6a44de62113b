"""A token's values are the same to the bit however it is evaluated, in many formats of weights.

llama.cpp alone does not do that for K-quants (inference/kernels, docs/architecture.md).
"""

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import pytest

from inference.engines.llama_library import Context, Entry, Weights
from tests.contract.conftest import model_file
from tests.inference.test_kernels import FITS, ggml

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not FITS, reason="for x86 processors with AVX2 only"),
]

# ggml's numbers of formats, by the tensors that are to have them. K-quants need rows of a
# multiple of 256 numbers, which only ffn_down has here: a format for each few layers.
F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, BF16 = (
    0, 1, 2, 3, 6, 8, 10, 11, 12, 13, 14, 20, 23, 30,
)  # fmt: skip
PLAIN = {b"attn_q": Q4_0, b"attn_k": IQ4_NL, b"attn_v": Q4_1, b"attn_out": Q5_0, b"ffn_up": Q8_0}
MIXED = PLAIN | {
    rb"blk\.1.\.ffn_down": Q6_K, rb"blk\.2.\.ffn_down": Q5_K, rb"blk\.[0-3]\.ffn_down": Q2_K,
    rb"blk\.[4-6]\.ffn_down": Q3_K, rb"blk\.[7-9]\.ffn_down": IQ4_XS,
}  # fmt: skip
WITH_Q4_K = {b"attn_q": Q4_0, b"ffn_down": Q4_K}
WIDE = {b"attn_q": F16, b"attn_k": BF16, b"attn_v": F32, b"ffn_up": BF16, b"ffn_down": F16}
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


@contextmanager
def loaded(file: Path) -> Iterator[Context]:
    weights = Weights(file, lambda percent: None)
    made = Context(weights, 3, 256, 96)
    made.use_threads(1)  # more would take the spinning from other tests' engines
    yield made
    made.free()
    weights.free()


@pytest.fixture(
    params=[MIXED, WITH_Q4_K, WIDE], ids=["small ones but Q4_K", "Q4_K", "of 16 and 32 bits"]
)
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    with loaded(file_with(request.param, tmp_path)) as made:
        yield made


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


def test_more_threads_make_the_same_values(context: Context):
    alone = evaluated(context, 0, [64, 1, 17, 2, 5, 1])
    with ThreadPoolExecutor(1) as caller:  # OpenMP's threads end with the one that called
        for slot, threads in (1, 2), (2, 3):
            context.use_threads(threads)
            assert caller.submit(evaluated, context, slot, [89, 1]).result() == alone


@pytest.mark.parametrize("kind", [Q4_0, IQ4_NL])
def test_weights_that_can_be_rearranged_are_multiplied_by_our_kernel(tmp_path: Path, kind: int):
    with loaded(file_with({b"ffn_up": kind}, tmp_path)) as context:
        before = ggml.chatsite_packed_ours()
        evaluated(context, 0, [5])
        assert ggml.chatsite_packed_ours() > before
