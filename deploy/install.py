"""What `make run` and `make test` need before they can start. Standard library only.

    python3 deploy/install.py run     install what is missing, then become `manage.py serve`
    python3 deploy/install.py dev     install what the tests and linters need as well

Each step leaves a stamp (a hash of what it was made from), so that a second run does nothing.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(os.environ.get("VENV", ROOT / ".venv")).resolve()
VENV_PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
DATA_DIR = Path(os.environ.get("DATA_DIR", ROOT / "data")).resolve()
MODELS_DIR = Path(os.environ.get("MODELS_DIR", DATA_DIR / "models")).resolve()
STATIC_ROOT = Path(os.environ.get("STATIC_ROOT", ROOT / "static-collected")).resolve()
MODEL = os.environ.get("MODEL", "smollm2-135m-instruct")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatsite"
OLDEST_PYTHON = (3, 11)
GIGABYTES_NEEDED = 2.0

# How llama.cpp is compiled (docs/architecture.md). Without OpenMP, whose threads spin and slow a
# shared machine a hundredfold; without llamafile's kernels, which evaluate a token alone in a
# step otherwise than in a prompt, so that a continued answer would not come out the same;
# without the part for pictures, which is not used.
LLAMA_FLAGS = "-DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DLLAVA_BUILD=OFF"


class Problem(Exception):
    """One sentence that says what is wrong and one that says what to do."""


# --- stamps -------------------------------------------------------------------------------


def digest(*parts: str | Path) -> str:
    """A hash of texts and of the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        total.update(b"\0")
    return total.hexdigest()


def listing(*folders: Path, pattern: str = "*") -> str:
    """Names, sizes and times of the files in folders: changes when any of them does."""
    files = sorted(path for folder in folders for path in folder.rglob(pattern) if path.is_file())
    return "\n".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)


class Stamp:
    """Remembers that a step was done for these inputs."""

    def __init__(self, path: Path, value: str) -> None:
        self.path, self.value = path, value

    def is_current(self) -> bool:
        return self.path.exists() and self.path.read_text() == self.value

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.value)


# --- running programs with a line that moves ----------------------------------------------


class Progress:
    """One line that shows what goes on and for how long; on a pipe, a line now and then."""

    PERCENT = re.compile(r"\[\s*(\d+)%\]")
    COUNT = re.compile(r"^\s*\[(\d+)/(\d+)\]")
    PACKAGE = re.compile(
        r"^\s*(?:Collecting|Downloading|Building wheel for|Installing) (?!collected)(\S+)"
    )

    def __init__(self, title: str) -> None:
        self.title, self.detail = title, ""
        self.started = time.monotonic()
        self.on_terminal = sys.stdout.isatty()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        word = "failed" if kind else "done"
        self._show(f"{self.title}: {word} after {self._elapsed()}", last=True)

    def read(self, line: str) -> None:
        """Take the step from a line of pip, CMake or Ninja."""
        if match := self.PERCENT.search(line):
            self.detail = f"compiling [{int(match[1]):3d}%]"
        elif match := self.COUNT.search(line):
            self.detail = f"compiling [{100 * int(match[1]) // int(match[2]):3d}%]"
        elif match := self.PACKAGE.search(line):
            self.detail = match[1][:40]

    def _tick(self) -> None:
        while not self.ended.wait(0.5 if self.on_terminal else 10):
            self._show(f"{self.title}: {self._elapsed()}  {self.detail}")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"

    def _show(self, text: str, last: bool = False) -> None:
        if self.on_terminal:
            print(f"\r\033[K{text}", end="\n" if last else "", flush=True)
        else:
            print(text, flush=True)


def run(title: str, command: Iterable[str | Path], **environment: str) -> None:
    """Run a program quietly with a progress line; its whole output goes to the log."""
    words = [str(word) for word in command]
    with Progress(title) as progress, LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(words)}\n")
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            log.write(line)
            progress.read(line)
            tail = [*tail[-79:], line]
        if process.wait():
            raise Problem(explain(title, "".join(tail)))


REASONS = {
    "No space left on device": "The disk is full. Free some space and try again.",
    "database or disk is full": "The disk is full. Free some space and try again.",
    "readonly database": "The database in DATA_DIR may only be read. Mend the rights.",
    "file is not a database": "The database file in DATA_DIR is damaged. Restore a copy of it.",
    "DO NOT MATCH THE HASHES": "A downloaded package is not the one this version was tested "
    "with. Nothing was installed from it.",
    "Temporary failure in name resolution": "The package index cannot be reached. "
    "Check the network and try again.",
    "NewConnectionError": "The package index cannot be reached. Check the network and try again.",
    "EAI_AGAIN": "The npm registry cannot be reached. Check the network and try again.",
    "CMAKE_CXX_COMPILER": "The C++ compiler does not work. Install a complete one "
    "(Debian, Ubuntu: apt-get install build-essential).",
    "Killed signal terminated program": "The compiler ran out of memory; 2 GB are enough.",
}


def explain(title: str, output: str) -> str:
    """The sentence for a failure we know, else where to read on."""
    for symptom, reason in REASONS.items():
        if symptom in output:
            return f"{reason} (The whole output is in {LOG}.)"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    return f"“{title}” failed: {last} (The whole output is in {LOG}.)"


# --- the steps ----------------------------------------------------------------------------


def check_machine() -> None:
    """What must be there before anything long starts."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise Problem(
            "There is no C++ compiler, and the model runner has to be compiled. "
            "Debian, Ubuntu: apt-get install build-essential. Fedora: dnf install gcc-c++."
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < GIGABYTES_NEEDED:
        raise Problem(
            f"Only {free:.1f} GB of disk are free here; {GIGABYTES_NEEDED:.0f} GB are needed. "
            "Free some space and try again."
        )


def check_settings() -> None:
    """What would otherwise be refused only after a long compile."""
    sys.path.insert(0, str(ROOT))
    from chatsite.environment import env_int

    env_int("PORT", 8000, 1, 65535)
    DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(DATA_DIR, os.W_OK | os.X_OK):
        raise Problem(f"The data folder {DATA_DIR} cannot be written to. Name another in DATA_DIR.")


def create_venv() -> None:
    stamp = Stamp(VENV / ".stamps" / "python", sys.version)
    if stamp.is_current() and VENV_PYTHON.exists():
        return
    check_machine()
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise Problem(
            "This Python cannot make virtual environments. Debian, Ubuntu: apt-get install "
            "python3-venv."
        ) from None
    if VENV.exists():
        shutil.rmtree(VENV)
    VENV.mkdir(parents=True)
    run("Creating the virtual environment", [sys.executable, "-m", "venv", VENV])
    stamp.write()


def pip() -> list[str | Path]:
    return [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-v"]


def install_llama() -> None:
    """llama-cpp-python, compiled our way.

    pip keeps what it compiled, but not by flags: a cache of our own keeps this build apart.
    """
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.search(r"^llama-cpp-python==(.*\n    --hash.*)+\n", lock, re.MULTILINE)
    assert pinned
    build = digest(pinned[0], LLAMA_FLAGS, os.environ.get("CMAKE_ARGS", ""))
    stamp = Stamp(VENV / ".stamps" / "llama", build)
    if stamp.is_current():
        return
    check_machine()
    print(
        "llama-cpp-python, which runs the model, is compiled for this machine: "
        "about five minutes, once.",
        flush=True,
    )
    requirement = VENV / "llama.txt"
    requirement.write_text(pinned[0])
    kept: list[str | Path] = ["--cache-dir", CACHE / f"pip-{build[:12]}"]
    kept += ["--force-reinstall", "--no-deps"]
    flags = f"{LLAMA_FLAGS} {os.environ.get('CMAKE_ARGS', '')}".strip()
    command = [*pip(), *kept, "--require-hashes", "-r", requirement]
    run("Preparing llama.cpp", command, CMAKE_ARGS=flags)
    stamp.write()


def install_packages(dev: bool) -> None:
    """Python packages, exactly those in the lock, each checked against its hash."""
    runtime = Stamp(VENV / ".stamps" / "packages", digest(ROOT / "requirements.lock"))
    tools = Stamp(VENV / ".stamps" / "packages-dev", digest(ROOT / "requirements-dev.lock"))
    if runtime.is_current() and (not dev or tools.is_current()):
        return
    if not runtime.path.exists():
        check_machine()
    lock = ROOT / ("requirements-dev.lock" if dev else "requirements.lock")
    run("Installing Python packages", [*pip(), "--require-hashes", "-r", lock])
    runtime.write()
    if dev:
        tools.write()


def npm() -> list[str | Path]:
    """The machine's npm, or one that pip brings, in an environment of its own."""
    found = shutil.which("npm")
    if found:
        return [found]
    own = VENV / "node"
    stamp = Stamp(VENV / ".stamps" / "node", digest(ROOT / "deploy" / "node.lock"))
    if not stamp.is_current():
        run("Preparing Node.js", [sys.executable, "-m", "venv", own])
        install: list[str | Path] = [own / "bin" / "python", "-m", "pip", "--no-input", "install"]
        lock = ROOT / "deploy" / "node.lock"
        run("Installing Node.js", [*install, "--require-hashes", "-r", lock])
        stamp.write()
    os.environ["PATH"] = f"{own / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return [own / "bin" / "npm"]


def install_assets() -> None:
    """The front-end packages of package-lock.json."""
    lock = ROOT / "package-lock.json"
    if not lock.exists():
        return
    stamp = Stamp(VENV / ".stamps" / "assets", digest(lock))
    if stamp.is_current() and (ROOT / "node_modules").is_dir():
        return
    command = [*npm(), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    run("Installing front-end packages", command)
    stamp.write()


def collect_static() -> None:
    inputs = [listing(ROOT / "static"), str(STATIC_ROOT)]
    files = ["package-lock.json", "requirements.lock", "chatsite/finders.py", "chatsite/storage.py"]
    inputs += [digest(ROOT / name) for name in files if (ROOT / name).exists()]
    stamp = Stamp(STATIC_ROOT / ".stamp", digest(*inputs))
    if not stamp.is_current():
        run("Collecting static files", manage("collectstatic", "--noinput", "-v", "0"))
        stamp.write()


def fetch_model() -> None:
    """The model file, if the chosen model has one and it is not there yet."""
    from inference.catalogue import CATALOGUE

    entry = CATALOGUE.get(MODEL)
    if entry is None or not entry.file_name:
        return
    file = MODELS_DIR / entry.file_name
    if file.exists() and file.stat().st_size == entry.file_bytes:
        return
    call("models", "pull", MODEL)


def migrate() -> None:
    """Bring the database's tables up to date. The stamp lives with the data it is about."""
    url = os.environ.get("DATABASE_URL", "")
    apps = [ROOT / name for name in ("accounts", "inference", "chats")]
    inputs = [listing(*(app / "migrations" for app in apps), pattern="*.py"), url]
    stamp = Stamp(DATA_DIR / ".migrated", digest(*inputs, ROOT / "requirements.lock"))
    is_there = (DATA_DIR / "chatsite.sqlite3").exists() and not url
    if not (stamp.is_current() and is_there):
        run("Preparing the database", manage("migrate", "--noinput", "--skip-checks", "-v", "1"))
        stamp.write()


def manage(*words: str) -> list[str | Path]:
    return [VENV_PYTHON, ROOT / "manage.py", *words]


def call(*words: str) -> None:
    """A management command that speaks for itself."""
    process = subprocess.run(manage(*words), cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    if process.returncode:
        raise SystemExit(process.returncode)


def serve() -> None:
    os.chdir(ROOT)
    os.execv(VENV_PYTHON, [str(word) for word in manage("serve")])


def prepare(dev: bool) -> None:
    steps: list[Callable[[], None]] = [
        check_settings,
        create_venv,
        install_llama,
        lambda: install_packages(dev),
        install_assets,
        collect_static,
        migrate,
        fetch_model,
    ]
    for step in steps:
        step()


def one_at_a_time() -> None:
    """Two installations of the same folder wait for each other; the lock ends with us."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another installation of this folder is under way; waiting for it.", flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)


def main(words: list[str]) -> int:
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:3]))
        print(
            f"Chatsite needs Python 3.11 or later, and this is {have}. "
            "Install a newer one and name it: make run PYTHON=python3.11",
            file=sys.stderr,
        )
        return 1
    try:
        one_at_a_time()
        prepare(dev=words == ["dev"])
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or ROOT
        print(f"\n{where}: {error.strerror}. Make room or mend the rights.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Run the same command again to go on.", file=sys.stderr)
        return 130
    if words == ["run"]:
        serve()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
