"""The few calls of llama.cpp the engine needs, with Python types. One thread at a time."""

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by OpenMP once, when llama.cpp is loaded: how long a thread spins while it waits for the
# others before it sleeps. A thread that never sleeps holds up the one it waits for if a
# neighbour has that one's core; one that sleeps at once wakes too late (docs/architecture.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# A crash is to end the process at once, not to start a debugger in it first.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import llama_cpp as library
import numpy as np

from inference.engines.base import EngineError
from inference.engines.sampler import Logits
from inference.engines.template import Segment, looks_like_control
from inference.gguf import read_header

ABORTED = 2
# ggml's numbers of formats that llama.cpp would rearrange in memory: Q2_K (with AVX-512), Q4_K and
# MXFP4. Rearranged, they give a token other values in a prompt than in an answer.
LEFT_AS_THEY_ARE = {10, 12, 39}
USER_DEFINED = library.LLAMA_TOKEN_ATTR_USER_DEFINED
STACK_BYTES = 512 << 20  # reserved, and used only as far as a text needs it


@library.llama_log_callback  # type: ignore[untyped-decorator]
def _no_log(level: int, text: bytes, data: object) -> None:
    """llama.cpp reports every tensor it loads; errors reach us as return values."""


library.llama_log_set(_no_log, None)


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of a batch: at `position` of sequence `slot`; `wanted`: its logits are."""

    token: int
    position: int
    slot: int
    wanted: bool = False


class AbortFlag:
    """Tells a running decode to give up, without running Python inside it.

    llama.cpp calls `bool callback(void *data)` between the nodes of its graph, far too often
    for Python. libc's strlen has just the shape needed: it returns 0 for an empty string.
    """

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        self.data = ctypes.cast(self._text, ctypes.c_void_p)
        self.callback = library.ggml_abort_callback(("strlen", ctypes.CDLL(None)))

    def raise_(self) -> None:
        self._text[0] = b"x"

    def lower(self) -> None:
        self._text[0] = b"\0"


class Weights:
    """A loaded model file: vocabulary, template, tensors."""

    def __init__(self, path: Path, progress: Callable[[int], None]) -> None:
        formats = read_header(path).formats

        @library.llama_progress_callback  # type: ignore[untyped-decorator]
        def report(fraction: float, data: object) -> bool:
            progress(int(fraction * 100))
            return True

        parameters = library.llama_model_default_params()
        parameters.progress_callback = report
        parameters.use_extra_bufts = LEFT_AS_THEY_ARE.isdisjoint(formats)
        self.handle: Any = library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.handle:
            raise EngineError(f"The model file {path.name} is broken or not supported.")
        self.vocabulary = library.llama_model_get_vocab(self.handle)
        self.size = library.llama_vocab_n_tokens(self.vocabulary)
        self.trained_context = library.llama_model_n_ctx_train(self.handle)
        self._control_names: dict[int, str] = {}
        self._reader = _with_stack()

    def tokenize(self, segments: Sequence[Segment]) -> list[int]:
        return self._reader.submit(self._tokens, segments).result()

    def _tokens(self, segments: Sequence[Segment]) -> list[int]:
        tokens: list[int] = []
        if library.llama_vocab_get_add_bos(self.vocabulary):
            tokens.append(library.llama_vocab_bos(self.vocabulary))
        for segment in segments:
            tokens.extend(self._tokens_of(segment))
        return tokens[1:] if tokens[:1] == tokens[1:2] == [self._bos()] else tokens

    def _bos(self) -> int:
        return int(library.llama_vocab_bos(self.vocabulary))

    def _tokens_of(self, segment: Segment) -> list[int]:
        tokens = self._tokenize(segment.text.encode(), segment.trusted)
        for token in () if segment.trusted else set(tokens):
            name = self._control_name(token)
            if name and name in segment.text:
                return [it for piece in segment.broken_up(name) for it in self._tokens_of(piece)]
        return tokens

    def _control_name(self, token: int) -> str:
        """Of a control token that llama.cpp finds in any text, because it is "user-defined"."""
        if token not in self._control_names:
            kind = library.llama_vocab_get_attr(self.vocabulary, token)
            name = self.special_text(token) if kind & USER_DEFINED else ""
            self._control_names[token] = name if looks_like_control(name) else ""
        return self._control_names[token]

    def _tokenize(self, text: bytes, special: bool) -> list[int]:
        room = len(text) + 8
        out = (library.llama_token * room)()
        count = library.llama_tokenize(self.vocabulary, text, len(text), out, room, False, special)
        if count < 0:
            raise EngineError("The text could not be turned into tokens.")
        return list(out[:count])

    def piece(self, token: int) -> bytes:
        out = ctypes.create_string_buffer(256)
        count = library.llama_token_to_piece(self.vocabulary, token, out, 256, 0, False)
        return out.raw[: max(count, 0)]

    def ends_answer(self, token: int) -> bool:
        return bool(library.llama_vocab_is_eog(self.vocabulary, token))

    def special_text(self, token: int) -> str:
        text = library.llama_vocab_get_text(self.vocabulary, token) if token >= 0 else None
        return text.decode(errors="replace") if text else ""

    def template_source(self) -> str:
        source = library.llama_model_chat_template(self.handle, None)
        return source.decode(errors="replace") if source else ""

    def free(self) -> None:
        self._reader.shutdown()
        library.llama_model_free(self.handle)


def _with_stack() -> ThreadPoolExecutor:
    """A thread that llama.cpp may cut texts in: its regular expressions call themselves for each
    character of a run, and 30,000 times one letter is more than a usual stack holds."""
    usual = threading.stack_size(STACK_BYTES)
    try:
        reader = ThreadPoolExecutor(1, "tokens")
        reader.submit(int).result()  # so that the thread is made now
    finally:
        threading.stack_size(usual)
    return reader


class Context:
    """A cache of `slots` sequences of `tokens` each, and the decode call.

    Each sequence has a cache of its own (kv_unified off), and attention is our kernel's: with
    these two, and llama.cpp built as deploy/install.py does, a token's logits are the same to
    the bit however it is evaluated (measured; docs/architecture.md). Continued answers,
    reused prefixes and checked guesses rest on it.
    """

    def __init__(self, weights: Weights, slots: int, tokens: int, batch: int) -> None:
        parameters = library.llama_context_default_params()
        parameters.n_ctx = slots * tokens
        parameters.n_seq_max = slots
        parameters.n_batch = parameters.n_ubatch = batch
        parameters.kv_unified = False
        self.abort = AbortFlag()
        self.handle, self.cache = _started(weights, parameters)
        library.llama_set_abort_callback(self.handle, self.abort.callback, self.abort.data)
        self._memory = library.llama_get_memory(self.handle)
        self._batch = library.llama_batch_init(batch, 0, 1)
        self._vocabulary = weights.size
        self._threads = 0
        # llama.cpp rounds up, which would be past the places a model has learned.
        self.tokens = min(tokens, library.llama_n_ctx_seq(self.handle))

    def decode(self, entries: Sequence[Entry]) -> list[Logits] | None:
        """Evaluate these tokens in one go: the logits wanted, in order; None when aborted.

        Entries come sorted by slot. The logits are valid until the next call.
        """
        batch = self._batch
        for index, entry in enumerate(entries):
            batch.token[index] = entry.token
            batch.pos[index] = entry.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = entry.slot
            batch.logits[index] = entry.wanted
        batch.n_tokens = len(entries)
        result = library.llama_decode(self.handle, batch)
        if result == ABORTED:
            return None
        if result != 0:
            raise EngineError(f"The model could not evaluate the text (code {result}).")
        return [self._logits(i) for i, entry in enumerate(entries) if entry.wanted]

    def _logits(self, index: int) -> Logits:
        pointer = library.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))

    def use_threads(self, count: int) -> None:
        if count != self._threads:  # ctypes gives the GIL up for each call
            library.llama_set_n_threads(self.handle, count, count)
            self._threads = count

    def seconds(self, threads: int, tokens: int) -> float:
        """How long an evaluation of so many takes; slot 0 is left empty."""
        self.use_threads(threads)
        started = time.perf_counter()
        self.decode([Entry(token, token, 0, wanted=True) for token in range(tokens)])
        self.forget(0, 0)
        return time.perf_counter() - started

    def forget(self, slot: int, start: int) -> None:
        """Drop a slot's tokens from position `start` on."""
        library.llama_memory_seq_rm(self._memory, slot, start, -1)

    def copy(self, source: int, target: int) -> None:
        """Replace what a slot holds by all that another one holds."""
        library.llama_memory_seq_rm(self._memory, target, -1, -1)
        library.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def free(self) -> None:
        library.llama_batch_free(self._batch)
        library.llama_free(self.handle)


@dataclass(frozen=True, slots=True)
class Cache:
    """What keys and values are kept as, and whether attention is one operation (and so ours)."""

    name: str
    keys: int
    values: int
    fused: bool

    def start(self, weights: Weights, parameters: Any) -> Any:
        """A context's handle; None where it cannot be had like this."""
        parameters.type_k, parameters.type_v = self.keys, self.values
        parameters.flash_attn_type = FLASH[self.fused]
        handle = library.llama_init_from_model(weights.handle, parameters)
        if handle and self.fused and not _attends(handle):
            library.llama_free(handle)
            return None
        return handle


FLASH = (library.LLAMA_FLASH_ATTN_TYPE_DISABLED, library.LLAMA_FLASH_ATTN_TYPE_ENABLED)
# Eight bits, which a step reads faster and which cost no quality (docs/architecture.md), if they
# fit. ggml's own fused attention would give a token other values in a prompt than in an answer.
CACHES = (
    Cache("q8_0 fused", library.GGML_TYPE_Q8_0, library.GGML_TYPE_Q8_0, fused=True),
    Cache("f16 fused", library.GGML_TYPE_F16, library.GGML_TYPE_F16, fused=True),
    Cache("q8_0 f16", library.GGML_TYPE_Q8_0, library.GGML_TYPE_F16, fused=False),
    Cache("f16", library.GGML_TYPE_F16, library.GGML_TYPE_F16, fused=False),
)


def _started(weights: Weights, parameters: Any) -> tuple[Any, str]:
    """A context, and the name of its cache."""
    for cache in CACHES:
        if (kernels() or not cache.fused) and (handle := cache.start(weights, parameters)):
            return handle, cache.name
    raise EngineError("Not enough memory for the model's context; lower CONTEXT_TOKENS.")


def _attends(handle: Any) -> bool:
    """Whether our kernel knows this model's attention: tried with one token.

    By this thread alone: helpers of its own would take the decode thread's from spinning.
    """
    ours, passed_on = _attentions()
    library.llama_set_n_threads(handle, 1, 1)
    token = (library.llama_token * 1)(0)
    result = library.llama_decode(handle, library.llama_batch_get_one(token, 1))
    library.llama_memory_clear(library.llama_get_memory(handle), True)
    now_ours, now_passed_on = _attentions()
    return bool(result == 0 and now_ours != ours and now_passed_on == passed_on)


def kernels() -> int:
    """The version of our kernels (inference/kernels) in this llama.cpp; 0 without them."""
    version: Callable[[], int] = getattr(_symbols, "chatsite_kernels", int)
    return version()


def _attentions() -> tuple[int, int]:
    """How many of this process so far were our kernel's, and how many were not."""
    return _symbols.chatsite_attention_ours(), _symbols.chatsite_attention_passed_on()


_symbols = library.llama_cpp._lib  # dlsym looks into what it was linked with, too


def build() -> str:
    told = f"llama.cpp {library.__version__} {library.llama_print_system_info().decode().strip()}"
    if version := kernels():
        told += f" kernels = {version}"
    return f"{told} GPU = 1" if library.llama_supports_gpu_offload() else told


def processor() -> str:
    """The name of this machine's: another one may round otherwise with the same build."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def is_exact(build: str) -> bool:
    """Whether this build gives a token the same logits however it is evaluated.

    Measured with our kernels, which are for x86 processors with AVX2. llama.cpp's own do not
    with every format of weights.
    """
    others = ("LLAMAFILE", "GPU", "AMX_INT8")  # whatever multiplies in place of our kernels
    return "kernels = " in build and not any(f"{it} = 1" in build for it in others)
