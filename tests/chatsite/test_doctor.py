"""The doctor names what is wrong and what to do, and fails only for what is needed."""

import io
import socket
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import call_command

from chatsite.management.commands import doctor
from inference.models import Model, Release, Worker

pytestmark = pytest.mark.django_db


def consult() -> tuple[str, int]:
    out = io.StringIO()
    try:
        call_command("doctor", stdout=out)
    except SystemExit as end:
        return out.getvalue(), int(end.code or 0)
    return out.getvalue(), 0


@pytest.fixture
def healthy(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the long parts: no model file, no compiled library, any port."""
    settings.MODEL, settings.PORT = "simulated", 0
    monkeypatch.setattr(doctor, "llama_cpp", lambda: doctor.Finding("llama-cpp-python"))
    kept = [e for e in doctor.EXAMINATIONS if e.__name__ not in ("llama_cpp", "assets")]
    monkeypatch.setattr(doctor, "EXAMINATIONS", tuple(kept))


def test_a_right_installation_is_well(healthy):
    report, code = consult()
    assert code == 0, report
    assert "✗" not in report
    assert "✓ Database" in report


def test_a_missing_model_file_fails_and_says_what_to_run(healthy, settings, tmp_path):
    settings.MODEL, settings.MODELS_DIR = "smollm2-135m-instruct", tmp_path
    report, code = consult()
    assert code == 1
    assert "✗ Model file" in report
    assert "manage.py models pull smollm2-135m-instruct" in report


def test_an_unknown_model_is_named_with_the_known_ones(healthy, settings):
    settings.MODEL = "unheard-of"
    report, code = consult()
    assert code == 1
    assert "simulated" in report


def test_a_model_of_which_nothing_is_live_is_told_as_a_worker_tells_it(healthy, settings, release):
    own = Model.objects.create(slug="my-model", title="Mine")
    facts = {"engine": "simulated", "context_tokens": 100, "state": Release.State.RETIRED}
    Release.objects.create(model=own, version=1, **facts)
    settings.MODEL = "my-model"
    report, code = consult()
    assert code == 1
    assert "✗ Model my-model: No release of it is live. Run: ./manage.py models promote" in report
    settings.MODEL = "unheard-of"
    assert "my-model" in consult()[0]


def test_a_port_where_a_site_answers_is_told_and_fails_nothing(healthy, settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings.PORT = taken.getsockname()[1]
        report, code = consult()
    assert code == 0
    assert f"Port {settings.PORT} on {settings.HOST}: a site is running there" in report


def test_a_port_that_cannot_be_had_is_told_but_fails_nothing(healthy, settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings.PORT = taken.getsockname()[1]
        report, code = consult()
    assert code == 0
    assert f"- Port {settings.PORT}" in report
    assert "Choose another port" in report


def test_the_workers_that_were_heard_of_lately_are_counted(healthy, release):
    """Those of other machines too; that none runs fails nothing."""
    assert "- Workers: none is running" in consult()[0]
    for state in ("ready", "ready", "gone"):
        Worker.objects.create(boot_id=uuid4(), node="n", pid=1, release=release, state=state)
    assert "✓ Workers: 2 ready\n" in consult()[0]


def test_waiting_migrations_fail(healthy, monkeypatch):
    monkeypatch.setattr("chatsite.health._is_migrated", Unmigrated())
    report, code = consult()
    assert code == 1
    assert "manage.py migrate" in report


def test_a_llama_cpp_that_is_not_exact_is_told_and_fails_nothing(monkeypatch):
    gpu = "inference.engines.llama_library.library.llama_supports_gpu_offload"
    monkeypatch.setattr(gpu, lambda: True)
    finding = doctor.llama_cpp()
    assert finding.mark == "-"
    assert "REPRODUCIBLE=1" in finding.problem
    assert "chatsite.W010" in finding.problem


class Unmigrated:
    def __call__(self) -> bool:
        return False

    def cache_clear(self) -> None: ...
