"""What `make run` and `make test` need before they can start. Standard library only.

    python3 deploy/install.py run     install what is missing, then become `manage.py serve`
    python3 deploy/install.py dev     install what the tests and linters need as well

Each step leaves a stamp (a hash of what it was made from), so that a second run does nothing.
"""

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deploy.running import VENV, Problem, run  # noqa: E402

VENV_PYTHON = VENV / "bin" / "python"
DATA_DIR = Path(os.environ.get("DATA_DIR", ROOT / "data")).resolve()
MODELS_DIR = Path(os.environ.get("MODELS_DIR", DATA_DIR / "models")).resolve()
STATIC_ROOT = Path(os.environ.get("STATIC_ROOT", ROOT / "static-collected")).resolve()
MODEL = os.environ.get("MODEL", "smollm2-135m-instruct")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatsite"
OLDEST_PYTHON = (3, 11)
GIGABYTES_NEEDED = 2.0

# How llama.cpp is compiled (docs/architecture.md). With OpenMP, whose threads can be told how
# long to spin; without llamafile's kernels, which evaluate a token alone in a step otherwise
# than in a prompt, so that a continued answer would not come out the same; without the part
# for pictures, which is not used.
LLAMA_FLAGS = "-DGGML_OPENMP=ON -DGGML_LLAMAFILE=OFF -DLLAVA_BUILD=OFF"
KERNELS = ROOT / "inference" / "kernels"  # of our own, compiled into it
# What a compiler uses of a processor, by the beginnings of the names Linux has for it: x86, ARM.
KINDS = ("sse", "ssse", "avx", "amx", "fma", "f16c", "bmi", "abm", "movbe", "popcnt", "gfni",
         "asimd", "sve", "i8mm", "bf16")  # fmt: skip


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


def pip(what: str = "install") -> list[str | Path]:
    return [VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", what, "-v"]


def pinned_llama() -> str:
    """The lock's lines for llama-cpp-python: its version and hashes."""
    lock = (ROOT / "requirements.lock").read_text()
    found = re.search(r"^llama-cpp-python==(.*\n    --hash.*)+\n", lock, re.MULTILINE)
    assert found
    return found[0]


def llama_flags() -> str:
    """Without our kernels."""
    return f"{LLAMA_FLAGS} {os.environ.get('CMAKE_ARGS', '')}".strip()


def kernel_flags() -> str:
    return shlex.quote(f"-DCMAKE_PROJECT_ggml_INCLUDE={KERNELS / 'kernels.cmake'}")


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """What a compiler may use of this machine's: what it makes may not run on another."""
    text = path.read_text() if path.exists() else ""
    found = re.search(r"^(?:flags|Features)\s*: (.*)", text, re.MULTILINE)
    flags = found[1].split() if found else []
    return " ".join([sysconfig.get_platform(), *sorted(f for f in flags if f.startswith(KINDS))])


def install_llama() -> None:
    """llama-cpp-python, compiled our way, once for a machine.

    pip keeps what it compiled, but not by flags, and an older one does not look for it where
    hashes are required: the wheel is kept by us.
    """
    pinned, tools = pinned_llama(), ROOT / "deploy" / "build.lock"
    build = digest(pinned, llama_flags(), processor(), tools, *sorted(KERNELS.iterdir()))
    stamp = Stamp(VENV / ".stamps" / "llama", build)
    if stamp.is_current():
        return
    check_machine()
    locked: list[str | Path] = ["--no-deps", "--require-hashes", "-r"]
    run("Preparing its compilers", [*pip(), *locked, tools])  # benches want them too
    cache = CACHE / f"llama-{build[:12]}"
    if not any(cache.glob("*.whl")):
        compile_llama(pinned, locked, cache)
    run("Installing llama.cpp", [*pip(), "--no-deps", "--force-reinstall", *cache.glob("*.whl")])
    stamp.write()


def compile_llama(pinned: str, locked: list[str | Path], cache: Path) -> None:
    print(
        "llama-cpp-python, which runs the model, is compiled for this machine: "
        "about five minutes, once.",
        flush=True,
    )
    requirement = VENV / "llama.txt"
    requirement.write_text(pinned)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as made:  # another clone may be at it, too
        kept: list[str | Path] = ["--no-cache-dir", "--wheel-dir", made, "--no-build-isolation"]
        command = [*pip("wheel"), *locked, requirement, *kept]
        run("Preparing llama.cpp", command, CMAKE_ARGS=f"{llama_flags()} {kernel_flags()}")
        for wheel in Path(made).glob("*.whl"):  # whole now
            wheel.replace(cache / wheel.name)


def install_packages(dev: bool) -> None:
    """Python packages, exactly those in the lock, each checked against its hash."""
    runtime = Stamp(VENV / ".stamps" / "packages", digest(ROOT / "requirements.lock"))
    tools = Stamp(VENV / ".stamps" / "packages-dev", digest(ROOT / "requirements-dev.lock"))
    if runtime.is_current() and (not dev or tools.is_current()):
        return
    if not runtime.path.exists():
        check_machine()
    lock = ROOT / ("requirements-dev.lock" if dev else "requirements.lock")
    command = [*pip(), "--no-deps", "--require-hashes", "-r", lock]  # the lock is all there is
    run("Installing Python packages", command)
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


def tune_model() -> None:
    """The faster weight format for this machine, found once. Without it all works, but slower."""
    from inference.catalogue import CATALOGUE

    entry = CATALOGUE.get(MODEL)
    if entry and entry.file_name and not (DATA_DIR / "tuning" / f"{MODEL}.json").exists():
        call("models", "tune", MODEL, "--quick", must=False)


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


def call(*words: str, must: bool = True) -> None:
    """A management command that speaks for itself; one that `must` succeed ends all if it fails."""
    process = subprocess.run(manage(*words), cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    if process.returncode and must:
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
    if not dev:
        steps.append(tune_model)
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
