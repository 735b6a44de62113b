"""deploy/install.py tells what is wrong in one sentence before anything long begins."""

import os
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it as `make run` does, for a virtual environment of its own."""
    names = {**os.environ, "VENV": str(folder / "venv"), "DATA_DIR": str(folder), **environment}
    command = [sys.executable, str(ROOT / "deploy" / "install.py"), "run"]
    return subprocess.run(
        command, env=names, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_missing_compiler_is_named_with_what_to_install(tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    failed = install(tmp_path, PATH=str(programs))
    said = failed.stdout + failed.stderr
    assert failed.returncode != 0
    assert "There is no C++ compiler" in said
    assert "build-essential" in said
    assert "Traceback" not in said
    assert not (tmp_path / "venv" / "bin").exists()


def test_too_little_disk_is_told_before_anything_is_installed(tmp_path: Path):
    code = (
        "import shutil, sys, runpy;"
        "shutil.disk_usage = lambda path: type('Usage', (), {'free': 10**8})();"
        f"sys.argv = ['install.py', 'run']; runpy.run_path({str(ROOT / 'deploy/install.py')!r},"
        " run_name='__main__')"
    )
    names = {**os.environ, "VENV": str(tmp_path / "venv"), "DATA_DIR": str(tmp_path)}
    failed = subprocess.run(
        [sys.executable, "-c", code], env=names, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    said = failed.stdout + failed.stderr
    assert failed.returncode != 0
    assert "GB of disk are free" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("OperationalError: database or disk is full", "The disk is full."),
        ("OSError: [Errno 28] No space left on device", "The disk is full."),
        ("DatabaseError: file is not a database", "is damaged. Restore a copy"),
        ("line one\nsomething new\n", "“A step” failed: something new"),
    ],
)
def test_what_a_step_failed_of_is_told_in_a_sentence(output: str, sentence: str):
    explain = runpy.run_path(str(ROOT / "deploy" / "running.py"))["explain"]
    assert sentence in explain("A step", output)


def test_llama_cpp_is_the_build_that_gives_equal_answers():
    import llama_cpp

    build = llama_cpp.llama_print_system_info().decode()
    assert "LLAMAFILE = 1" not in build, (
        "run `make dev`: llama-cpp-python was not compiled by deploy/install.py"
    )
    assert "AMX_INT8 = 1" not in build, "llama.cpp's own products on AMX tiles"
    if sys.platform == "linux":  # a Mac's compiler has no OpenMP
        assert "OPENMP = 1" in build, "its threads cannot be told to sleep"


def test_what_was_compiled_for_another_processor_is_another_build(tmp_path: Path):
    processor = runpy.run_path(str(ROOT / "deploy" / "install.py"))["processor"]
    told = "model name\t: some\nflags\t\t: fpu sse2 {}constant_tsc avx2\nbugs\t\t: fmaybe\n"
    found = []
    for number, more in enumerate(("", "ibrs ", "avx512f ")):  # of a newer kernel; of another one
        path = tmp_path / str(number)
        path.write_text(told.format(more))
        found.append(processor(path))
    here = sysconfig.get_platform()
    assert found == [f"{here} avx2 sse2"] * 2 + [f"{here} avx2 avx512f sse2"]
    assert processor(tmp_path / "not there") == here
    path.write_text("processor\t: 0\nFeatures\t: fp asimd sve2\nflagship\t: avx\n")
    assert processor(path) == f"{here} asimd sve2"
