"""A model file's first load on a machine, in a child: a file made to break a loader breaks that.

`python -m inference.engines.trial PATH` loads the file, renders its chat template, decodes a
token and turns every character there is into tokens, under limits on memory and processor time
and without the site's environment.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from inference.engines.base import EngineError, Request, RequestRefused, Sampling, Turn
from inference.engines.renderer import limit
from inference.engines.template import PASSED_ON
from inference.gguf import read_header
from inference.hashes import sha256_of

ROOT = Path(__file__).resolve().parents[2]
CONTEXT_TOKENS = 2048
MEMORY_BYTES = 4 << 30  # beside twice the file: weights may be copied into another form
SECONDS = 120  # and one more for each SLOWEST_BYTES of the file
SLOWEST_BYTES = 20 << 20
REFUSED = 3
RUN = 40_000  # characters
KERNELS = ROOT / "inference" / "kernels"
AT_ONCE = 30_000  # characters
CONVERSATIONS = (
    # A template may behave as long as there is one message only.
    (Turn("system", "Be brief."), Turn("user", "Hello")),
    (Turn("user", "Hello"), Turn("assistant", "Hello."), Turn("user", "And?")),
    # Runs of one kind of character are what breaks a vocabulary's regular expressions.
    *((Turn("user", sign * RUN),) for sign in "a1 !中"),
)


def prove(path: Path, sha256: str, stamps: Path) -> None:
    """Check the file and load it in a child, unless it survived that with this llama.cpp before.

    sha256: what its bytes must hash to; "" takes any. Raises EngineError. What was survived is
    remembered in the folder `stamps`.
    """
    try:
        stamp = stamps / _key(path, sha256)
    except OSError as error:
        raise EngineError(
            f"The model file {path.name} cannot be read: {error.strerror}."
        ) from error
    if not stamp.exists():
        if sha256 and sha256_of(path) != sha256:
            raise EngineError(f"{path.name} is not the file this release was made of.")
        read_header(path)
        _try(path)
        stamps.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def _key(path: Path, sha256: str) -> str:
    facts = path.stat()  # a file that was exchanged is another file
    kernels = sorted(KERNELS.iterdir())  # compiled into it
    build = version("llama-cpp-python") + "".join(map(sha256_of, kernels))
    told = f"{sha256} {build} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    return hashlib.sha256(told.encode()).hexdigest()


def _try(path: Path) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "inference.engines.trial", str(path)],
            cwd=ROOT,
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=2 * _seconds(path),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{path.name} broke the trial load: it took too long.") from error
    if done.returncode == REFUSED:
        raise EngineError(str(json.loads(done.stdout)))
    if done.returncode:
        raise EngineError(f"{path.name} broke the trial load: {_cause(done.returncode)}.")


def _cause(code: int) -> str:
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with code {code}"


def _seconds(path: Path) -> int:
    return SECONDS + path.stat().st_size // SLOWEST_BYTES


def main(path: Path) -> int:
    from llama_cpp import llama_supports_gpu_offload

    limit(CORE=0, FSIZE=1 << 20, CPU=_seconds(path))
    if not llama_supports_gpu_offload():  # a GPU's driver maps far more than there is
        limit(AS=MEMORY_BYTES + 2 * path.stat().st_size)
    try:
        asyncio.run(_load(path))
    except EngineError as error:
        print(json.dumps(str(error)))
        return REFUSED
    return 0


async def _load(path: Path) -> None:
    from inference.engines.llama_cpp import LlamaCppEngine

    engine = LlamaCppEngine(path, slots=1, context_tokens=CONTEXT_TOKENS, threads=1)
    await engine.start(lambda percent: None)
    request = Request((Turn("user", "Hello"),), Sampling(temperature=0, max_tokens=1))
    async for _ in engine.generate(request):
        pass
    for turns in CONVERSATIONS:
        with contextlib.suppress(RequestRefused):  # some take no system message
            await engine.count_tokens(turns)
    for text in _every_character():
        await engine.count_tokens((Turn("user", text),))
    await engine.stop()


def _every_character() -> Iterator[str]:
    """Texts of all there are: llama.cpp ends the process where a vocabulary has no tokens for one.

    In an order nobody could prepare for, with tokens for several that hide the one that lacks.
    """
    order = [chr(it) for it in range(0x110000) if not 0xD800 <= it < 0xE000]
    random.SystemRandom().shuffle(order)
    for begin in range(0, len(order), AT_ONCE):
        yield "".join(order[begin : begin + AT_ONCE])


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
