"""Our kernels compute what the textbook says, for one token and for many alike.

They are called through ggml's own graphs.
"""

import ctypes
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from inference.engines.llama_library import kernels

ggml = llama_cpp.llama_cpp._lib
IS_HADAMARD = 1  # a hint
F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, I32 = 0, 1, 2, 3, 8, 12, 14, 26
Floats = NDArray[np.float32]

FITS = sys.platform == "linux" and " avx2 " in Path("/proc/cpuinfo").read_text()
pytestmark = pytest.mark.skipif(not FITS, reason="for x86 processors with AVX2 only")


class Memory(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("at", ctypes.c_void_p), ("none", ctypes.c_bool)]


POINTER, FLOAT, LONG = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
for name, arguments in {
    "ggml_init": [Memory],
    "ggml_free": [POINTER],
    "ggml_new_tensor_4d": [POINTER, ctypes.c_int, LONG, LONG, LONG, LONG],
    "ggml_get_data": [POINTER],
    "ggml_mul_mat": [POINTER] * 3,
    "ggml_mul_mat_id": [POINTER] * 4,
    "ggml_mul_mat_set_hint": [POINTER, ctypes.c_int],
    "ggml_flash_attn_ext": [*[POINTER] * 5, FLOAT, FLOAT, FLOAT],
    "ggml_new_graph": [POINTER],
    "ggml_build_forward_expand": [POINTER] * 2,
    "ggml_graph_compute_with_ctx": [POINTER, POINTER, ctypes.c_int],
    "ggml_quantize_chunk": [ctypes.c_int, POINTER, POINTER, LONG, LONG, LONG, POINTER],
}.items():
    getattr(ggml, name).argtypes = arguments
    getattr(ggml, name).restype = POINTER


class Graph:
    """Arrays of numpy in, one operation, an array out. Shapes are ggml's: the last is first."""

    def __init__(self) -> None:
        self.at = ggml.ggml_init(Memory(256 << 20, None, False))

    def tensor(self, values: Floats, kind: int = F32) -> int:
        shape = (1, 1, 1, 1, *values.shape)[-4:]
        made: int = ggml.ggml_new_tensor_4d(self.at, kind, *reversed(shape))
        values = np.ascontiguousarray(values, np.float16 if kind == F16 else np.float32)
        data = ggml.ggml_get_data(made)
        if kind in (F32, F16):
            ctypes.memmove(data, values.ctypes.data, values.nbytes)
        else:
            rows = values.size // shape[-1]
            ggml.ggml_quantize_chunk(kind, values.ctypes.data, data, 0, rows, shape[-1], None)
        return made

    def whole_numbers(self, values: NDArray[np.int32]) -> int:
        made: int = ggml.ggml_new_tensor_4d(self.at, I32, *reversed((1, 1, *values.shape)))
        ctypes.memmove(ggml.ggml_get_data(made), values.ctypes.data, values.nbytes)
        return made

    def result(self, tensor: int, *shape: int, threads: int = 1) -> Floats:
        graph = ggml.ggml_new_graph(self.at)
        ggml.ggml_build_forward_expand(graph, tensor)
        with ThreadPoolExecutor(1) as caller:  # OpenMP's threads end with the one that called
            caller.submit(ggml.ggml_graph_compute_with_ctx, self.at, graph, threads).result()
        data = ctypes.cast(ggml.ggml_get_data(tensor), ctypes.POINTER(FLOAT))
        return np.ctypeslib.as_array(data, shape).copy()


@pytest.fixture
def graph() -> Iterator[Graph]:
    made = Graph()
    yield made
    ggml.ggml_free(made.at)


def test_they_are_in_the_llama_cpp_that_was_installed():
    assert kernels()


def numbers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- products -----------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "error"), [(Q8_0, 0.02), (Q4_1, 0.12)])
def test_a_product_is_that_of_the_matrices_but_for_rounding(graph: Graph, kind: int, error: float):
    weights, rows = numbers(136, 192, seed=1), numbers(7, 192, seed=2)
    before = ggml.chatsite_rows_ours()
    made = graph.result(
        ggml.ggml_mul_mat(graph.at, graph.tensor(weights, kind), graph.tensor(rows)), 7, 136
    )
    assert ggml.chatsite_rows_ours() == before + 1
    right = rows @ weights.T
    assert np.abs(made - right).mean() < error * np.abs(right).mean()


@pytest.mark.parametrize("kind", [Q8_0, Q4_1])
def test_a_row_has_the_same_product_alone_and_among_others(graph: Graph, kind: int):
    weights, rows = graph.tensor(numbers(136, 96, seed=3), kind), numbers(21, 96, seed=4)
    together = graph.result(ggml.ggml_mul_mat(graph.at, weights, graph.tensor(rows)), 21, 136)
    for count, threads in (1, 1), (2, 2), (3, 1), (4, 2), (5, 3), (8, 1), (13, 2):
        some = graph.tensor(rows[:count])
        product = ggml.ggml_mul_mat(graph.at, weights, some)
        made = graph.result(product, count, 136, threads=threads)
        assert np.array_equal(made, together[:count])


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, Q4_1, Q4_K, Q6_K])
def test_an_expert_gives_a_row_the_same_alone_and_among_others(graph: Graph, kind: int):
    weights, rows = graph.tensor(numbers(2, 64, 256, seed=8), kind), numbers(160, 1, 256, seed=9)
    experts = (np.arange(160, dtype=np.int32) % 2)[:, None]

    def product(some: slice) -> Floats:
        count = len(rows[some])
        chosen = graph.whole_numbers(np.ascontiguousarray(experts[some]))
        made = ggml.ggml_mul_mat_id(graph.at, weights, graph.tensor(rows[some]), chosen)
        return graph.result(made, count, 64)

    together = product(slice(None))
    for at in (0, 1, 77):
        assert np.array_equal(product(slice(at, at + 1))[0], together[at])


# Eight rows of weights side by side (matmul_packed.cpp); a block is 32 numbers of each row.
def blocks(count: int, numbers: int, seed: int) -> bytes:
    """Blocks of eight scales and so many bytes that mean anything."""
    some = np.random.default_rng(seed)
    parts = (
        some.uniform(0.01, 0.1, 8).astype(np.float16).tobytes() + some.bytes(numbers)
        for _ in range(count)
    )
    return b"".join(parts)


def other_side(rows: int, count: int, seed: int) -> bytes:
    """Blocks of a scale a row and 32 numbers a row, never the byte -128."""
    some = np.random.default_rng(seed)
    parts = (
        some.uniform(0.01, 0.1, rows).astype(np.float16).tobytes()
        + some.integers(-127, 128, 32 * rows, dtype=np.int8).tobytes()
        for _ in range(count)
    )
    return b"".join(parts)


def side_by_side(
    call: str, weights: bytes, other: bytes, rows: int, columns: int, deep: int
) -> Floats:
    """Results two apart from one row to the next; what is between them is left alone."""
    to = np.zeros((rows, columns + 2), np.float32)
    getattr(ggml, call)(
        ctypes.c_int(32 * deep), POINTER(to.ctypes.data), ctypes.c_size_t(columns + 2),
        weights, other, ctypes.c_int(rows), ctypes.c_int(columns),
    )  # fmt: skip
    assert not to[:, columns:].any()
    return to[:, :columns]


@pytest.mark.parametrize("kind", ["q4_0", "iq4_nl"])
@pytest.mark.parametrize(("call", "rows"), [("gemm", 4), ("gemm", 28), ("gemv", 1)])
@pytest.mark.parametrize("columns", [8, 16, 24])
def test_weights_side_by_side_are_multiplied_as_ggml_does(
    kind: str, call: str, rows: int, columns: int
):
    deep, together = 9, min(rows, 4)
    weights = blocks(deep * columns // 8, 128, seed=10)
    other = b"".join(other_side(together, deep, seed) for seed in range(rows // together))
    ours, ggmls = (
        side_by_side(f"{who}_{call}_{kind}_8x8_q8_0", weights, other, rows, columns, deep)
        for who in ("__wrap_ggml", "ggml")
    )
    assert np.abs(ours).min() > 0
    assert np.abs(ours - ggmls).max() < 1e-4 * np.abs(ggmls).max()


def of_row(four: bytes, row: int, deep: int) -> bytes:
    """One row's blocks out of those of four, which have scales first and take turns by eights."""
    found = b""
    for at in range(0, len(four), len(four) // deep):
        scales, numbers = four[at : at + 8], four[at + 8 : at + 136]
        found += scales[2 * row : 2 * row + 2]
        found += b"".join(numbers[32 * i + 8 * row : 32 * i + 8 * row + 8] for i in range(4))
    return found


@pytest.mark.parametrize("kind", ["q4_0", "iq4_nl"])
@pytest.mark.parametrize("columns", [8, 40])
def test_a_row_beside_others_gets_the_same_of_weights_side_by_side(kind: str, columns: int):
    deep = 9
    weights = blocks(deep * columns // 8, 128, seed=12)
    fours = [other_side(4, deep, seed) for seed in range(5)]
    many = f"__wrap_ggml_gemm_{kind}_8x8_q8_0"
    together = side_by_side(many, weights, b"".join(fours), 20, columns, deep)
    for at in range(20):
        row = of_row(fours[at // 4], at % 4, deep)
        alone = side_by_side(f"__wrap_ggml_gemv_{kind}_8x8_q8_0", weights, row, 1, columns, deep)
        assert np.array_equal(alone[0], together[at])


# --- rotation -----------------------------------------------------------------------------
def rotation(width: int) -> Floats:
    """Sylvester's matrix, of a length that does not change a vector's."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(width**0.5)


@pytest.mark.parametrize("width", [8, 64, 256])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rotation_is_the_textbooks_but_for_rounding(graph: Graph, width: int, threads: int):
    rows = numbers(2, 3, 5, width, seed=12)
    before = ggml.chatsite_rotations_ours()
    made = ggml.ggml_mul_mat(graph.at, graph.tensor(rotation(width)), graph.tensor(rows))
    ggml.ggml_mul_mat_set_hint(made, IS_HADAMARD)
    found = graph.result(made, *rows.shape, threads=threads)
    assert ggml.chatsite_rotations_ours() == before + 1
    assert np.abs(found - rows @ rotation(width)).max() < 1e-5


class Work(ctypes.Structure):
    """ggml_compute_params."""

    _fields_ = [
        ("number", ctypes.c_int), ("threads", ctypes.c_int), ("room", ctypes.c_size_t),
        ("at", ctypes.c_void_p), ("pool", ctypes.c_void_p), ("plainly", ctypes.c_bool),
    ]  # fmt: skip


def test_a_rotation_is_ggmls_to_the_bit(graph: Graph):
    rows, found = numbers(30, 64, seed=13), []
    for who in ("__wrap_ggml", "ggml"):
        made = ggml.ggml_mul_mat(graph.at, graph.tensor(rotation(64)), graph.tensor(rows))
        work = Work(0, 1, 0, None, None, False)
        getattr(ggml, f"{who}_compute_forward_fwht")(ctypes.byref(work), POINTER(made))
        data = ctypes.cast(ggml.ggml_get_data(made), ctypes.POINTER(FLOAT))
        found.append(np.ctypeslib.as_array(data, rows.shape).copy())
    ours, ggmls = found
    assert np.array_equal(ours, ggmls)


# --- attention ----------------------------------------------------------------------------
HEADS, SHARED, CELLS = 2, 3, 256


def attention(
    graph: Graph, query: Floats, cache: tuple[Floats, Floats], mask: Floats, kind: int,
    cap: float = 0, threads: int = 1,
) -> Floats:  # fmt: skip
    keys, values = (graph.tensor(part, kind) for part in cache)
    queries, width = query.shape[1:]
    seen = graph.tensor(np.where(mask, 0, -np.inf).astype(np.float32), F16)
    scale = FLOAT(1 / width**0.5)
    made = ggml.ggml_flash_attn_ext(
        graph.at, graph.tensor(query), keys, values, seen, scale, FLOAT(0), FLOAT(cap)
    )
    ours, passed_on = ggml.chatsite_attention_ours(), ggml.chatsite_attention_passed_on()
    found = graph.result(made, queries, len(query), cache[1].shape[-1], threads=threads)
    assert ggml.chatsite_attention_ours() - ours == (not cap)
    assert ggml.chatsite_attention_passed_on() - passed_on == bool(cap)
    return found


def textbook(query: Floats, cache: tuple[Floats, Floats], mask: Floats) -> Floats:
    keys, values = (
        np.repeat(part, len(query) // HEADS, axis=0).astype(np.float64) for part in cache
    )
    scores = query @ keys.swapaxes(1, 2) / query.shape[-1] ** 0.5
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found: Floats = (weights / weights.sum(-1, keepdims=True) @ values).swapaxes(0, 1)
    return found


def case(queries: int, key_width: int = 64, value_width: int = 64, shared: int = SHARED):
    """Queries that see a little more of the cache each, with gaps in what they see."""
    query = numbers(HEADS * shared, queries, key_width, seed=5)
    cache = numbers(HEADS, CELLS, key_width, seed=6), numbers(HEADS, CELLS, value_width, seed=7)
    first = 90
    mask = np.arange(CELLS)[None] <= first + np.arange(queries)[:, None]
    mask[:, 20:30] = False
    return query, cache, mask


@pytest.mark.parametrize(("kind", "error"), [(F16, 0.002), (Q8_0, 0.02)])
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (96, 64), (32, 160)])
def test_attention_is_the_textbooks_but_for_rounding(
    graph: Graph, kind: int, error: float, widths: tuple[int, int]
):
    query, cache, mask = case(20, *widths)
    made = attention(graph, query, cache, mask, kind)
    assert np.abs(made - textbook(query, cache, mask)).max() < error * 5
    assert np.abs(made - textbook(query, cache, mask)).mean() < error


@pytest.mark.parametrize("kind", [F16, Q8_0])
@pytest.mark.parametrize("shared", [1, 2, 3, 4, 5])
def test_a_query_is_answered_the_same_alone_and_among_others(graph: Graph, kind: int, shared: int):
    query, cache, mask = case(70, 64, 96, shared)
    together = attention(graph, query, cache, mask, kind)
    for first, last in (0, 1), (31, 32), (69, 70), (5, 7), (40, 70):
        some = attention(graph, query[:, first:last], cache, mask[first:last], kind)
        assert np.array_equal(some, together[first:last])
    for threads in (2, 3):
        assert np.array_equal(attention(graph, query, cache, mask, kind, threads=threads), together)


def test_cells_nobody_sees_may_hold_anything(graph: Graph):
    query, (keys, values), mask = case(3)
    right = attention(graph, query, (keys, values), mask, F16)
    keys[:, 100:], values[:, 100:] = 60_000, -60_000
    assert np.array_equal(attention(graph, query, (keys, values), mask, F16), right)


def test_a_query_that_sees_nothing_gets_zeros(graph: Graph):
    query, cache, mask = case(2)
    mask[0] = False
    made = attention(graph, query, cache, mask, F16)
    assert not made[0].any()
    assert made[1].any()


def test_what_a_model_adds_to_attention_is_left_to_ggml(graph: Graph):
    """Scores are bent to stay below a cap: far from it that is nearly the same."""
    query, cache, mask = case(4)
    made = attention(graph, query, cache, mask, F16, cap=1000)
    assert np.abs(made - textbook(query, cache, mask)).max() < 0.02
