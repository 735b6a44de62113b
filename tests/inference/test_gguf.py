"""A model file's header is read with bounds, and everything wrong with it is one sentence."""

import hashlib
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from inference import gguf as reader
from inference.engines.base import EngineError
from inference.gguf import read_header
from tests.contract.conftest import model_file
from tests.inference.gguf_files import METADATA, gguf, pair, tensor


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


def test_a_right_file_tells_its_architecture_context_and_template(tmp_path):
    header = read_header(written(tmp_path, gguf()))
    assert (header.architecture, header.context_tokens, header.tensors) == ("llama", 512, 1)
    template = METADATA["tokenizer.chat_template"]
    assert header.template_sha256 == hashlib.sha256(str(template).encode()).hexdigest()


@pytest.mark.real_model
def test_the_default_model_is_a_right_file():
    header = read_header(model_file())
    assert (header.architecture, header.context_tokens) == ("llama", 8192)
    assert "<|im_start|>" in header.template


HUGE = struct.pack("<Q", 1 << 60)
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends before its header"),
    "another format": (gguf(magic=b"PK\3\4"), "not a model file in the GGUF format"),
    "a version to come": (gguf(version=9), "version this site cannot read"),
    "countless keys": (gguf(keys=1 << 40), "counts cannot be right"),
    "more keys than there are": (gguf(keys=60), "is broken"),
    "a name without end": (gguf({}, (), keys=1)[:24] + HUGE + bytes(64), "text in it is too long"),
    "a text longer than the file": (
        gguf({}, (), keys=1)[:24] + pair("k", "x")[:13] + struct.pack("<Q", 1 << 20),
        "ends before its header",
    ),
    "a list longer than the file": (
        gguf({}, (), keys=1)[:24] + pair("k", [])[:17] + struct.pack("<Q", 3_000_000),
        "ends before its header",
    ),
    "a list of lists": (
        gguf({}, (), keys=1)[:24] + pair("k", [])[:13] + struct.pack("<IQ", 9, 5) + bytes(99),
        "unknown kind",
    ),
    "a vocabulary beyond reason": (
        gguf({}, (), keys=1)[:24] + pair("k", [])[:17] + struct.pack("<Q", 1 << 50),
        "vocabulary is larger",
    ),
    "an odd alignment": (gguf({**METADATA, "general.alignment": 33}), "power of two"),
    "no alignment": (gguf({**METADATA, "general.alignment": 0}), "power of two"),
    "no architecture": (gguf({"a": "b"}), "what model it is"),
    "no tensors": (gguf(tensors=()), "what model it is"),
    "weights cut off": (gguf(weights=bytes(8)), "cut short"),
    "a tensor far behind the end": (gguf(tensors=(tensor(offset=1 << 62),)), "cut short"),
    "a tensor off its place": (gguf(tensors=(tensor(offset=3),)), "impossible shape or place"),
    "a shape that overflows": (gguf(tensors=(tensor(shape=(1 << 40, 1 << 40)),)), "cut short"),
    "a shape of nothing": (gguf(tensors=(tensor(shape=(0, 4)),)), "impossible shape"),
    "a shape of five dimensions": (gguf(tensors=(tensor(rank=5),)), "impossible shape"),
    "half a block": (gguf(tensors=(tensor(kind=2),)), "impossible shape"),
    "numbers of an unknown kind": (gguf(tensors=(tensor(kind=77),)), "form this site cannot read"),
    "one tensor twice": (gguf(tensors=(tensor(), tensor())), "twice"),
    "a part of a split model": (gguf({**METADATA, "split.count": 3}), "split model"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, kind):
    content, sentence = WRONG[kind]
    with pytest.raises(EngineError, match=sentence) as refused:
        read_header(written(tmp_path, content))
    assert str(refused.value).startswith("model.gguf ")


def test_a_key_said_twice_is_refused(tmp_path):
    content = gguf()
    twice = content[:16] + struct.pack("<Q", 5) + pair("llama.context_length", 9) + content[24:]
    with pytest.raises(EngineError, match="twice"):
        read_header(written(tmp_path, twice))


def test_a_header_without_end_is_not_read_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 200)
    with pytest.raises(EngineError, match="larger than any model needs"):
        read_header(written(tmp_path, gguf()))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"gone\.gguf cannot be read: No such file"):
        read_header(tmp_path / "gone.gguf")


def test_no_damage_to_a_header_raises_anything_but_the_one_error(tmp_path):
    draw, whole = random.Random(1), gguf()
    refused = 0
    for _ in range(1500):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(broken))] = draw.choice((0, 1, 127, 255, draw.randrange(256)))
        refused += _is_refused(written(tmp_path, bytes(broken[: draw.randint(0, 2 * len(whole))])))
    assert refused > 700


def _is_refused(path: Path) -> bool:
    try:
        read_header(path)
    except EngineError:
        return True
    return False


@pytest.mark.real_model
def test_the_sizes_of_tensor_types_are_those_of_the_library():
    import ctypes

    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml: Any = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    sizes = {k: (ggml.ggml_blck_size(k), ggml.ggml_type_size(k)) for k in reader.BLOCKS}
    assert sizes == reader.BLOCKS
