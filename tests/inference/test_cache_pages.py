"""The cache of keys and values takes memory as it is filled, and what is in it is right."""

from pathlib import Path

import pytest

from inference.engines.llama_library import Context, Entry, Weights, kernels
from tests.contract.conftest import model_file

SEQUENCES, TOKENS = 8, 4096
WHOLE = 300 << 20  # bytes and more, if all of it were in memory

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not kernels(), reason="this llama.cpp was built without our kernels"),
]


def in_memory() -> int:
    """Bytes of this process that are in memory and of no file."""
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def test_a_cache_takes_memory_as_it_is_filled():
    weights = Weights(model_file(), lambda percent: None)
    empty = in_memory()
    context = Context(weights, SEQUENCES, TOKENS, 64)
    made = in_memory() - empty
    for begin in range(0, 512, 64):
        context.decode([Entry(7, begin + it, 0, wanted=False) for it in range(64)])
    filled = in_memory() - empty - made
    context.free()
    weights.free()
    assert made < WHOLE / 4
    assert filled < WHOLE / 4  # for an eighth of a sequence of eight
