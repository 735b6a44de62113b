"""Model files pulled and verified for staff: one process at a time, which may die."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError
from django.db.models.functions import Now

from inference import download, file_jobs, file_work, pulls
from inference.engines import outbound
from inference.engines.base import EngineError
from inference.file_jobs import FileJob, NotOurs
from inference.models import Release
from inference.releases import ReleaseError
from tests.faults.workers import wait_for
from tests.inference.gguf_files import gguf
from tests.inference.tls_server import FileServer

pytestmark = pytest.mark.django_db(transaction=True)
WEIGHTS = gguf(weights=bytes(range(256)) * 20_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are no models that load: their trials have tests of their own."""
    settings.MODELS_DIR = tmp_path / "models"
    monkeypatch.setattr(pulls, "prove", lambda path, sha256, stamps: None)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.01)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """On this machine, which is let through as if it were not."""
    made = FileServer(tmp_path, WEIGHTS)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    monkeypatch.setattr(outbound, "is_public", lambda address: True)
    yield made
    made.close()


def asked(server: FileServer, by: Any, **fields: Any) -> FileJob:
    facts = {"source": f"{server.address}/tiny.gguf", "name": "tiny", "sha256": SHA256, **fields}
    job = FileJob(user=by, by=by.get_username(), **facts)
    job.full_clean()
    job.save()
    return job


def done() -> FileJob:
    file_work.do_all()
    return FileJob.objects.latest("pk")


def lose(job: FileJob) -> None:
    """As if its process had been killed half a minute ago."""
    FileJob.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))


def test_a_pull_becomes_a_release_and_the_trail_says_who_asked(server, charlie, settings):
    asked(server, charlie, title="Tiny", context_tokens=256)
    job = done()
    assert (job.state, job.outcome) == ("done", "Release tiny@1 is recorded (live).")
    assert (settings.MODELS_DIR / "tiny.gguf").read_bytes() == WEIGHTS
    release = Release.objects.get(file_jobs=job)
    assert (release.weights_sha256, release.context_tokens) == (SHA256, 256)
    assert release.model.title == "Tiny"
    assert list(release.events.values_list("action", "user")) == [("add", charlie.pk)]
    assert job.done_bytes == job.total_bytes == len(WEIGHTS)


def test_a_file_that_is_another_one_is_refused_and_thrown_away(server, charlie, settings):
    asked(server, charlie, sha256="0" * 64)
    job = done()
    assert (job.state, job.release) == ("failed", None)
    assert f"its SHA-256 is {SHA256}" in job.outcome
    assert list(settings.MODELS_DIR.rglob("*.gguf")) == []


def test_what_the_process_of_a_job_fetched_before_it_was_killed_is_not_fetched_again(
    server, charlie, monkeypatch
):
    job = asked(server, charlie)
    with monkeypatch.context() as patched:
        server.cut_after, server.cuts = 1000, 99
        patched.setattr(download, "TRIES", 2)
        patched.setattr(file_jobs.FileJob, "end", killed)
        with pytest.raises(SystemExit):
            file_work.do_all()
    assert FileJob.objects.claim() is None  # for as long as the lease lasts
    lose(job)
    server.cuts, server.asked = 0, []
    assert done().state == "done"
    assert server.asked == [("/tiny.gguf", "bytes=2000-")]


def killed(*_: object) -> None:
    raise SystemExit


def test_a_process_told_to_stop_gives_its_job_back(server, charlie, monkeypatch):
    asked(server, charlie)
    with monkeypatch.context() as patched:
        patched.setattr(pulls, "prove", killed)
        with pytest.raises(SystemExit):
            file_work.do_all()
    assert FileJob.objects.get().state == "waiting"
    assert done().state == "done"


def test_a_job_whose_process_is_lost_again_and_again_is_given_up(server, charlie):
    job = asked(server, charlie)
    for _ in range(file_jobs.MOST_LOST + 1):
        assert FileJob.objects.claim() == job
        lose(job)
    assert FileJob.objects.claim() is None
    job.refresh_from_db()
    assert (job.state, job.outcome) == ("failed", "Its process was lost 3 times.")


def test_a_process_that_is_told_to_stop_is_not_one_that_was_lost(server, charlie):
    asked(server, charlie)
    for _ in range(file_jobs.MOST_LOST + 2):
        job = FileJob.objects.claim()
        assert job
        job.give_back()
    assert done().state == "done"


def test_one_job_is_worked_on_at_a_time_the_oldest_first(server, charlie):
    first, second = asked(server, charlie), asked(server, charlie)
    assert FileJob.objects.claim() == first
    assert (FileJob.objects.claim(), FileJob.objects.is_due()) == (None, False)
    first.refresh_from_db()
    first.end("done", "")
    assert FileJob.objects.claim() == second


def test_a_process_that_was_taken_for_lost_writes_nothing_more(server, charlie):
    asked(server, charlie)
    former = FileJob.objects.claim()
    assert former
    lose(former)
    FileJob.objects.claim()
    with pytest.raises(NotOurs):
        former.renew(step="Downloading")
    former.end("failed", "too late")
    assert FileJob.objects.get().state == "running"


def test_a_cancelled_job_ends_at_its_next_piece_and_a_waiting_one_at_once(
    server, charlie, monkeypatch
):
    job = asked(server, charlie)
    later = asked(server, charlie)
    later.cancel(charlie)
    later.refresh_from_db()
    assert (later.state, later.outcome) == ("cancelled", "Cancelled by charlie.")
    start = file_jobs.FileJob.take
    monkeypatch.setattr(FileJob, "take", lambda mine: start(mine) and not mine.cancel(charlie))
    file_work.do_all()
    job.refresh_from_db()
    assert (job.state, job.release) == ("cancelled", None)


def test_a_job_that_was_cancelled_during_its_trial_load_records_nothing(
    server, charlie, monkeypatch
):
    """The process is told, which ends it wherever it is; here it goes on to the end of the load."""
    called_off = threading.Event()
    monkeypatch.setattr(file_work, "KEEP_SECONDS", 0.01)

    def load(*_: object) -> None:
        FileJob.objects.get().cancel(charlie)
        assert called_off.wait(10)

    monkeypatch.setattr(pulls, "prove", load)
    asked(server, charlie)
    file_work.do_all(called_off.set)
    assert FileJob.objects.get().state == "cancelled"
    assert not Release.objects.exists()


def test_the_lease_is_kept_while_a_trial_load_tells_nothing(server, charlie, monkeypatch):
    monkeypatch.setattr(file_work, "KEEP_SECONDS", 0.01)

    def load(*_: object) -> None:
        job = FileJob.objects.get()
        lose(job)
        wait_for(FileJob.objects.is_busy, 10, "the lease to be kept")

    monkeypatch.setattr(pulls, "prove", load)
    asked(server, charlie)
    assert done().state == "done"


def test_a_database_that_is_away_for_a_while_does_not_end_a_download(server, charlie, monkeypatch):
    renew, failures = FileJob.renew, iter([OperationalError("away")])

    def answer(job: FileJob, **fields: Any) -> None:
        if fields and (failure := next(failures, None)):
            raise failure
        renew(job, **fields)

    monkeypatch.setattr(FileJob, "renew", answer)
    asked(server, charlie)
    assert (done().state, next(failures, "asked")) == ("done", "asked")


def test_what_nobody_foresaw_ends_the_job_and_says_where_to_look(server, charlie, monkeypatch):
    def fail(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(pulls, "prove", fail)
    monkeypatch.setattr("inference.model_files._clear_errors", contextlib.nullcontext)
    asked(server, charlie)
    assert done().outcome == "PermissionError; the log has more."


def test_a_damaged_file_of_a_release_is_fetched_anew(server, charlie, settings):
    asked(server, charlie)
    assert done().state == "done"
    (settings.MODELS_DIR / "tiny.gguf").write_bytes(b"X" + WEIGHTS[1:])
    asked(server, charlie)
    assert done().state == "done"
    assert (settings.MODELS_DIR / "tiny.gguf").read_bytes() == WEIGHTS
    assert Release.objects.count() == 1


def test_another_file_of_that_name_stays_and_its_hash_is_told_to_nobody(server, charlie, settings):
    settings.MODELS_DIR.mkdir()
    (settings.MODELS_DIR / "tiny.gguf").write_bytes(b"mine")
    asked(server, charlie)
    assert done().outcome == "Another file tiny.gguf is here already."
    assert (settings.MODELS_DIR / "tiny.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("address", ["https://[/x.gguf", "https://a..b/x.gguf"])
def test_a_server_that_sends_on_to_nonsense_is_one_clear_error(server, charlie, address):
    server.redirect = address
    asked(server, charlie)
    assert done().outcome.split(".")[0] in (
        "The server sends on to what is no address",
        "a",  # … has no address
    )


def test_a_mark_in_other_letters_is_not_kept_for_the_next_pull(server, charlie, monkeypatch):
    server.tag = '"\xe9"'
    server.cut_after, server.cuts = 1000, 1
    asked(server, charlie)
    assert done().state == "done"


def test_a_verification_tells_the_release_and_its_trail(server, charlie):
    asked(server, charlie)
    release = done().release
    assert release
    FileJob.verify(release, charlie)
    assert (done().state, FileJob.objects.latest("pk").outcome) == ("done", "The file is right.")
    release.weights_path.write_bytes(b"X" + WEIGHTS[1:])
    FileJob.verify(release, charlie)
    assert done().state == "failed"
    notes = list(release.events.filter(action="verify", user=charlie).values_list("note"))
    assert notes[0] == ("The file is right.",)
    assert "is damaged" in notes[1][0]


def test_what_has_no_file_cannot_be_verified(release, charlie):
    with pytest.raises(ReleaseError, match="has no file"):
        FileJob.verify(release, charlie)


def test_a_broken_file_is_told_in_one_sentence(server, charlie, monkeypatch):
    def broken(*_: object) -> None:
        raise EngineError("tiny.gguf broke the trial load: it took too long.")

    monkeypatch.setattr(pulls, "prove", broken)
    asked(server, charlie)
    assert done().outcome == "tiny.gguf broke the trial load: it took too long."


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"source": "file:/etc/passwd.gguf"}, "source"),
        ({"source": "http://example.org/tiny.gguf"}, "source"),
        ({"source": "https://example.org/tiny.txt"}, "source"),
        ({"source": ""}, "source"),
        ({"name": ""}, "name"),
        ({"sha256": "12"}, "sha256"),
        ({"sha256": ""}, "sha256"),
    ],
)
def test_what_cannot_be_pulled_for_staff_is_said_where_it_was_written(
    server, charlie, fields, field
):
    with pytest.raises(ValidationError) as refused:
        asked(server, charlie, **fields)
    assert list(refused.value.message_dict) == [field]


def test_so_many_may_wait_and_no_more(server, charlie):
    for _ in range(file_jobs.MOST_WAITING):
        asked(server, charlie)
    with pytest.raises(ValidationError, match="Many jobs of yours are waiting"):
        asked(server, charlie)


# --- no way to this machine's neighbours ---------------------------------------------------
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.0", "255.255.255.255", "224.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1",
     "::ffff:127.0.0.1", "::ffff:7f00:1", "2002:7f00:1::", "64:ff9b::10.0.0.1", "2001:0:1::1",
     "64:ff9b:1::a00:1", "fec0::2", "::127.0.0.1", "::ffff:0:7f00:1", "192.0.0.192",
     "168.63.129.16", "3fff::1", "2001:db8::1"],
)  # fmt: skip
def test_an_address_that_is_not_public_is_known_as_such(address):
    assert not outbound.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::1.1.1.1"])
def test_a_public_address_is_known_as_such(address):
    assert outbound.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]"])
def test_a_pull_for_staff_does_not_reach_this_machine(server, charlie, monkeypatch, host):
    monkeypatch.undo()
    port = server.address.rsplit(":", 1)[1]
    asked(server, charlie, source=f"https://{host}:{port}/tiny.gguf")
    assert "has no address, or one that is not of the public network" in done().outcome
    assert server.asked == []


def test_nor_by_a_redirect(server, charlie, monkeypatch):
    allowed = iter([True])
    monkeypatch.setattr(outbound, "is_public", lambda address: next(allowed, False))
    server.redirect = "https://127.0.0.1:9/tiny.gguf"
    asked(server, charlie)
    assert "has no address, or one that is not of the public network" in done().outcome
    assert len(server.asked) == 1


def test_a_name_is_looked_up_once_and_its_certificate_is_asked_for_by_name(
    server, charlie, monkeypatch
):
    """The second answer of a name server cannot lead elsewhere."""
    port = int(server.address.rsplit(":", 1)[1])
    looked_up = []

    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        looked_up.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    asked(server, charlie, source=f"https://files.example:{port}/tiny.gguf")
    monkeypatch.setattr(download, "TRIES", 1)
    assert "certificate" in done().outcome.lower()  # the server's is for 127.0.0.1
    assert looked_up.count("files.example") == 1


def test_everything_goes_over_the_proxy_where_there_is_one(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "*")
    with outbound.public_file_client() as door, pytest.raises(httpx.ConnectError, match="refused"):
        door.get("https://10.0.0.1/")  # nobody listens there; the proxy refuses at once


def test_two_pulls_at_once_do_not_tidy_each_others_files_away(
    server, charlie, settings, monkeypatch
):
    from inference.model_files import _alone

    settings.MODELS_DIR.mkdir()
    asked(server, charlie)
    busy = contextlib.ExitStack()
    busy.enter_context(_alone(settings.MODELS_DIR))
    monkeypatch.setattr("time.sleep", lambda seconds: busy.close())
    assert done().state == "done"  # when the other one was
    assert FileJob.objects.get().fence == 2
