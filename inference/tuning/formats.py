"""Weight formats and how a file is brought into one; the work is done in a child process.

`python -m inference.tuning.formats SOURCE FORMAT TARGET` prints whole percents on its way.
"""

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import llama_cpp as library

from inference.engines.base import EngineError

COUNT = re.compile(rb"\[\s*(\d+)/\s*(\d+)\]")
DELICATE = (b"attn_v.weight", b"attn_output.weight", b"ffn_down.weight")
Q8_0_TENSOR = 8  # ggml's number of the type


@dataclass(frozen=True, slots=True)
class Format:
    """careful: the tensors that suffer most from four bits are kept in eight."""

    ftype: int
    careful: bool = False


FORMATS = {
    "IQ4_NL+Q8_0": Format(library.LLAMA_FTYPE_MOSTLY_IQ4_NL, careful=True),
    "IQ4_NL": Format(library.LLAMA_FTYPE_MOSTLY_IQ4_NL),
    "Q4_0": Format(library.LLAMA_FTYPE_MOSTLY_Q4_0),
    "Q4_1": Format(library.LLAMA_FTYPE_MOSTLY_Q4_1),
    "Q8_0": Format(library.LLAMA_FTYPE_MOSTLY_Q8_0),
    "BF16": Format(library.LLAMA_FTYPE_MOSTLY_BF16),
}


def path_of(source: Path, name: str) -> Path:
    """Where the file goes: into a folder that no pull writes to, named for the format."""
    return source.parent / "tuned" / f"{source.stem}.{name.replace('+', '-')}.gguf"


def make(source: Path, name: str, target: Path) -> None:
    """Write `source` in another format. Raises EngineError."""
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = FORMATS[name].ftype
    parameters.allow_requantize = True
    if FORMATS[name].careful:
        parameters.tt_overrides = _overrides()
    pointer = ctypes.byref(parameters)
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), pointer):
        raise EngineError(f"{source.name} cannot be written as {name}.")


def _overrides() -> ctypes.Array[library.llama_model_tensor_override]:
    """The delicate tensors in eight bits; the list ends with an empty pattern."""
    kind = library.llama_model_tensor_override
    pairs = [*((pattern, Q8_0_TENSOR) for pattern in DELICATE), (None, 0)]
    return (kind * len(pairs))(*(kind(*pair) for pair in pairs))


@library.llama_log_callback  # type: ignore[untyped-decorator]
def _show_percent(level: int, text: bytes, data: object) -> None:
    if found := COUNT.search(text):
        print(100 * int(found[1]) // int(found[2]), flush=True)


if __name__ == "__main__":
    library.llama_log_set(_show_percent, None)
    try:
        make(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except EngineError as error:
        raise SystemExit(str(error)) from error
