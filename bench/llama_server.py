"""llama.cpp's own server, compiled from the very source and with the flags of our engine.

The source is the pinned distribution of llama-cpp-python, which has llama.cpp whole. It is
compiled once, into the user's cache folder. LLAMA_SERVER names one to take instead;
LLAMA_SERVER_AMX=1 takes one with products on AMX tiles, which our flags leave out.
`python -m bench.llama_server` compiles it if it must, and says where it is.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from bench.site import free_port
from deploy.install import CACHE, digest, llama_flags, pinned_llama, processor
from deploy.running import Problem, run

# Optimised for this machine, as llama-cpp-python compiles it too; the rest leaves out what the
# bench does not use.
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF "
    "-DLLAMA_BUILD_SERVER=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF "
    "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF"
)
WITH_AMX = os.environ.get("LLAMA_SERVER_AMX") == "1" and "LLAMA_SERVER" not in os.environ
# As our engine is compiled (inference/kernels/kernels.cmake): GCC 12 drops most of what llama.cpp's
# products on AMX tiles are set up with, and the process dies of it. Without these two
# optimisations it does not, which is not how anybody compiles it, but the faster server.
COMPILER = "-fno-tree-dse -fno-dse" if WITH_AMX else "-U__AMX_INT8__"
LOAD_SECONDS = 300
CMAKE = Path(sys.executable).parent / "cmake"  # deploy/build.lock


def program() -> Path:
    """The server's file, compiled if there is none yet. Raises Problem."""
    named = os.environ.get("LLAMA_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise Problem(f"LLAMA_SERVER names {named}, which is no program. Correct or unset it.")
        return Path(named)
    facts = (pinned_llama(), llama_flags(), FLAGS, COMPILER, processor())
    folder = CACHE / f"llama-server-{digest(*facts)[:12]}"
    file = folder / "llama-server"
    if not file.exists():
        _compile(folder, file)
    return file


def _compile(folder: Path, file: Path) -> None:
    print("llama-server is compiled for this machine: a few minutes, once.", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source = _source(Path(work))
        build = Path(work) / "build"
        flags = [*f"{llama_flags()} {FLAGS}".split(), f"-DCMAKE_CXX_FLAGS={COMPILER}"]
        run("Preparing llama-server", [CMAKE, "-S", str(source), "-B", str(build), *flags])
        target = ["--target", "llama-server", "--parallel", str(os.cpu_count() or 1)]
        run("Compiling llama-server", [CMAKE, "--build", str(build), *target])
        (build / "bin" / "llama-server").rename(file)


def _source(work: Path) -> Path:
    """llama.cpp out of the pinned source distribution, whose hash pip checks."""
    requirement = work / "llama.txt"
    requirement.write_text(pinned_llama())
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"),
        # pip looks into the source with the tools that deploy/build.lock has brought.
        *("--no-deps", "--no-binary", "llama-cpp-python", "--no-build-isolation"),
        "--require-hashes",
        *("--dest", str(work), "-r", str(requirement)),
    ]
    run("Fetching llama.cpp", command)
    with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
        archive.extractall(work, filter="data")
    return next(work.glob("*/vendor/llama.cpp"))


def untouched() -> dict[str, str]:
    """The environment without what our engine sets for itself: the server has its own defaults."""
    ours = ("GOMP_SPINCOUNT", "GGML_NO_BACKTRACE")
    return {name: value for name, value in os.environ.items() if name not in ours}


def server_version() -> str:
    """What the server says it is, on one line."""
    said = subprocess.run([program(), "--version"], capture_output=True, text=True, check=False)
    amx = " with AMX" if WITH_AMX else ""
    return " ".join((said.stdout + said.stderr).split())[:200] + amx


class LlamaServer:
    """A running server on a free port of this machine; ends with the `with` block."""

    def __init__(self, model: Path, slots: int, context_tokens: int, threads: int, *more: str):
        self.port = free_port()
        self.started = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [
                *(program(), "-m", model, "--host", "127.0.0.1", "--port", str(self.port)),
                *("-np", str(slots), "-c", str(slots * context_tokens), "--no-kv-unified"),
                *("-t", str(threads), "-tb", str(threads), *more),
            ],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT,
            env=untouched(),
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> "LlamaServer":
        try:
            self._wait_until_loaded()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._log.close()

    def _wait_until_loaded(self) -> None:
        while time.perf_counter() - self.started < LOAD_SECONDS:
            if self._process.poll() is not None:
                raise Problem(f"llama-server ended: {self._last_words()}")
            with suppress(OSError, urllib.error.URLError):
                address = f"http://127.0.0.1:{self.port}/health"
                with urllib.request.urlopen(address, timeout=5):  # 503 while it loads
                    return
            time.sleep(0.005)
        raise Problem(f"llama-server did not load the model in {LOAD_SECONDS} s.")

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().splitlines()
        return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    try:
        print(program())
    except Problem as problem:
        sys.exit(str(problem))
