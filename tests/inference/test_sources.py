"""What can be written as a source of a model file, and what cannot."""

from pathlib import Path

import pytest

from inference.catalogue import WheelMember
from inference.sources import LocalFile, ModelFileError, WebFile, file_name, parse


def test_the_four_kinds_are_understood():
    assert parse("wheel:llm-tiny==1.0!tiny.gguf") == WheelMember("llm-tiny==1.0", "", "tiny.gguf")
    assert parse("https://a.example/x/tiny.gguf?download=1") == WebFile(
        "https://a.example/x/tiny.gguf?download=1", "https://a.example/x/tiny.gguf?download=1"
    )
    assert parse("file:/models/tiny.gguf") == LocalFile(Path("/models/tiny.gguf"))
    hub = parse("hf:some-org/Tiny-GGUF/sub/tiny-Q4_0.gguf@a1b2")
    assert isinstance(hub, WebFile)
    assert hub.address == (
        "https://huggingface.co/some-org/Tiny-GGUF/resolve/a1b2/sub/tiny-Q4_0.gguf"
    )
    assert str(hub) == "hf:some-org/Tiny-GGUF/sub/tiny-Q4_0.gguf@a1b2"
    main = parse("hf:o/r/f.gguf")
    assert isinstance(main, WebFile)
    assert main.address.endswith("/o/r/resolve/main/f.gguf")


@pytest.mark.parametrize(
    "written",
    [
        "http://a.example/x.gguf", "ftp://a.example/x.gguf", "https://", "https:///x.gguf",
        "https://me:secret@a.example/x.gguf", "hf:owner/file.gguf", "hf:o/../r/x.gguf",
        "hf:o/r/x.gguf@main/../..", "hf:o/r/x.gguf?x=1", "wheel:tiny!x.gguf", "wheel:tiny==1",
        "wheel:--index-url=http://x==1!x.gguf", "file:x.gguf", "x.gguf", "C:/x.gguf",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_sentence(written):
    with pytest.raises(ModelFileError, match="is not a source of model files"):
        parse(written)


@pytest.mark.parametrize(
    "written",
    [
        "https://a.example/..%2f..%2fetc.gguf", "https://a.example/", "https://a.example/x.bin",
        "https://a.example/.x.gguf", "https://a.example/-x.gguf", "https://a.example/%00.gguf",
        "wheel:a==1!../x.gguf", "wheel:a==1!x y.gguf", "file:/etc/passwd",
        "https://a.example/" + "x" * 300 + ".gguf",
    ],
)  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(written):
    with pytest.raises(ModelFileError, match="cannot be a model file's name"):
        file_name(parse(written))
