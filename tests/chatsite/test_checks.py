"""Each system check speaks when it should, with an id and a hint that names a page."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site
from django.core.checks import run_checks

from chatsite import checks
from inference.engines.llama_library import is_exact


def ids(found: Any) -> list[str]:
    for message in found:
        assert "docs/settings.md#" in message.hint
    return [message.id for message in found]


def test_a_right_installation_is_quiet(settings):
    settings.MODEL = "simulated"
    assert [m for m in run_checks() if str(m.id).startswith("chatsite.")] == []


def test_a_data_folder_that_cannot_be_written_to(settings):
    settings.DATA_DIR = Path("/proc/1")  # nobody makes files there, not even root
    assert ids(checks.data_folder())[:1] in (["chatsite.E001"], [])
    settings.DATA_DIR = Path("/nowhere")
    assert "chatsite.E001" in ids(checks.data_folder())


def test_a_data_folder_too_deep_for_unix_sockets(settings, tmp_path):
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    settings.DATA_DIR = deep
    assert ids(checks.data_folder()) == ["chatsite.E002"]


@pytest.mark.parametrize(
    ("model", "content", "expected"),
    [
        ("simulated", None, []),
        ("smollm2-135m-instruct", None, ["chatsite.W004"]),
        ("smollm2-135m-instruct", b"half", ["chatsite.W005"]),
    ],
)
def test_the_model_file(settings, tmp_path, model, content, expected):
    settings.MODEL, settings.MODELS_DIR = model, tmp_path
    if content:
        (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    assert ids(checks.model_file()) == expected


@pytest.mark.django_db
def test_a_model_nobody_knows_and_one_that_somebody_pulled(settings, release):
    settings.MODEL = "own-model"
    assert ids(checks.model_is_known(databases=["default"])) == ["chatsite.W003"]
    settings.MODEL = "wordllama-256"  # in the catalogue, but it answers nobody
    assert ids(checks.model_is_known(databases=["default"])) == ["chatsite.W003"]
    settings.MODEL = release.model.slug = "own-model"
    release.model.save()
    assert checks.model_is_known(databases=["default"]) == []


@pytest.mark.parametrize("key", ["short", "x" * 60, "django-insecure-" + "abcdefgh" * 10])
def test_a_weak_signing_key(settings, key):
    settings.SECRET_KEY = key
    assert ids(checks.secret_key()) == ["chatsite.E006"]
    settings.DEBUG = True
    assert checks.secret_key() == []


def test_any_host_is_taken(settings):
    settings.ALLOWED_HOSTS = ["*"]
    assert ids(checks.any_host()) == ["chatsite.W007"]


def test_an_old_sqlite(monkeypatch):
    monkeypatch.setattr("chatsite.checks.connection.vendor", "sqlite")
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 0))
    assert ids(checks.sqlite_version()) == ["chatsite.E008"]


@pytest.mark.parametrize(
    ("host", "https", "expected"),
    [
        ("127.0.0.1", False, []),
        ("::1", False, []),
        ("localhost", False, []),
        ("0.0.0.0", False, ["chatsite.W009"]),
        ("chat.example.org", False, ["chatsite.W009"]),
        ("0.0.0.0", True, []),
    ],
)
def test_a_public_address_without_https(settings, host, https, expected):
    settings.HOST, settings.HTTPS = host, https
    assert ids(checks.public_without_https()) == expected


def test_a_llama_cpp_that_gives_other_answers_beside_others(settings, monkeypatch):
    """Every llama.cpp there is not measured is taken for one."""
    library = "inference.engines.llama_library.library"
    monkeypatch.setattr(f"{library}.llama_supports_gpu_offload", lambda: True)
    assert ids(checks.exact_build()) == ["chatsite.W010"]
    settings.REPRODUCIBLE = True
    assert checks.exact_build() == []


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("CPU : AVX = 1 | AVX2 = 1 | REPACK = 1 | kernels = 1", True),
        ("CPU : AVX = 1 | AVX2 = 1 | REPACK = 1 |", False),
        ("CPU : AVX2 = 1 | LLAMAFILE = 1 | OPENMP = 1 | kernels = 1", False),
        ("CPU : AVX2 = 1 | REPACK = 1 | kernels = 1 GPU = 1", False),
        ("CPU : AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1 | kernels = 1", False),
        ("CPU : NEON = 1 | ARM_FMA = 1 | REPACK = 1 |", False),
    ],
)
def test_which_builds_are_known_to_be_exact(build, expected):
    assert is_exact(f"llama.cpp 0.3.36 {build}") is expected


def test_a_deployment_with_https_has_no_warnings():
    environment = {**os.environ, "HTTPS": "1", "HOST": "0.0.0.0", "MODEL": "simulated"}
    environment["REPRODUCIBLE"] = "1"  # whatever llama.cpp this machine has
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    subprocess.run(command, env=environment, cwd=site.BASE_DIR, check=True, capture_output=True)


def test_every_check_is_described_in_the_settings_page():
    page = (site.BASE_DIR / "docs" / "settings.md").read_text()
    known = {f"chatsite.{kind}" for kind in ("E001", "E002", "E006", "E008")}
    known |= {f"chatsite.{kind}" for kind in ("W003", "W004", "W005", "W007", "W009", "W010")}
    assert [name for name in known if name not in page] == []


def test_a_process_of_the_site_loads_neither_a_development_server_nor_a_model():
    code = "import django, sys; django.setup(); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"twisted", "daphne", "celery", "numpy", "llama_cpp"} & set(loaded)
