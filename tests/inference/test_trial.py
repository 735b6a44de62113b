"""A model file's first load happens in a child: what breaks the loader breaks no worker."""

import asyncio
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from inference.engines import trial
from inference.engines.base import EngineError, Request, RequestRefused, Sampling, Turn
from inference.engines.llama_cpp import LlamaCppEngine
from inference.engines.trial import prove
from inference.hashes import sha256_of
from tests.contract.conftest import model_file
from tests.inference.gguf_files import gguf, gpt2_with_places, llama_that_knows

BLOCKS = b"llama.block_count" + struct.pack("<I", 4)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    return tmp_path / "trials"


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files whose trial would be run, none of which is."""
    tried: list[Path] = []
    monkeypatch.setattr(trial, "_try", tried.append)
    return tried


@pytest.mark.real_model
def test_a_right_file_survives_its_trial(stamps):
    prove(model_file(), "", stamps)
    assert len(list(stamps.iterdir())) == 1


@pytest.mark.real_model
def test_a_file_that_aborts_the_loader_ends_the_child_and_not_us(tmp_path, stamps):
    path = tmp_path / "crash.gguf"
    whole = model_file().read_bytes()
    at = whole.index(BLOCKS) + len(BLOCKS)
    path.write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])  # a model of no layers
    with pytest.raises(EngineError, match=r"crash\.gguf broke the trial load: .* SIGABRT"):
        prove(path, "", stamps)
    assert not stamps.exists()


def test_a_file_the_loader_refuses_is_refused_in_its_words(tmp_path, stamps):
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf())
    with pytest.raises(EngineError, match="is broken or not supported"):
        prove(path, "", stamps)


EASY = "".join(map(chr, range(33, 127))) + "▁中"


def test_a_vocabulary_that_lacks_a_character_is_found_out_before_anybody_types_it(tmp_path, stamps):
    path = tmp_path / "english.gguf"
    path.write_bytes(llama_that_knows(EASY))
    with pytest.raises(EngineError, match=r"english\.gguf broke the trial load"):
        prove(path, "", stamps)
    path.write_bytes(llama_that_knows(EASY + "".join(map(chr, range(256, 512)))))
    with pytest.raises(EngineError, match="broke the trial load"):
        prove(path, "", stamps)


def test_a_prompt_past_the_places_a_model_has_learned_is_refused(tmp_path, stamps):
    path = tmp_path / "short.gguf"
    path.write_bytes(gpt2_with_places(100))
    prove(path, "", stamps)

    async def ask(length: int) -> int:
        engine = LlamaCppEngine(path, slots=1, context_tokens=512, threads=1)
        await engine.start(lambda percent: None)
        asked = Request((Turn("user", "b" * length),), Sampling(max_tokens=200))
        try:
            deltas = [delta async for delta in engine.generate(asked)]
            assert deltas[-1].usage
            return deltas[-1].usage.prompt + deltas[-1].usage.completion
        finally:
            await engine.stop()

    with pytest.raises(RequestRefused, match="this model reads 100"):
        asyncio.run(ask(150))
    assert asyncio.run(ask(60)) == 101  # the last token is not evaluated


def test_a_load_without_end_is_ended(tmp_path, stamps, monkeypatch: Any):
    monkeypatch.setattr(trial, "_seconds", lambda path: 0)
    path = tmp_path / "slow.gguf"
    path.write_bytes(gguf())
    with pytest.raises(EngineError, match="took too long"):
        prove(path, "", stamps)


def test_what_survived_is_not_tried_again_until_it_is_exchanged(tmp_path, stamps, tries):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    prove(path, "", stamps)
    prove(path, "", stamps)
    assert len(tries) == 1
    os.utime(path, (1, 1))
    prove(path, "", stamps)
    assert len(tries) == 2


def test_a_file_with_other_bytes_than_the_releases_is_not_loaded(tmp_path, stamps, tries):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    with pytest.raises(EngineError, match="not the file this release was made of"):
        prove(path, "0" * 64, stamps)
    prove(path, sha256_of(path), stamps)
    assert len(tries) == 1


def test_another_build_of_the_library_tries_again(tmp_path, stamps, tries, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf())
    prove(path, "", stamps)
    monkeypatch.setattr(trial, "version", lambda name: "99")
    prove(path, "", stamps)
    shutil.rmtree(stamps)
    assert len(tries) == 2
