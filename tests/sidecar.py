"""A real llama-server in a child process: llama.cpp's own, out of the wheel of xllamacpp.

LLAMA_SERVER names another one to take (`make test-llama-server`: the one the bench compiles). Run
as a program it serves a model file on a free port of this machine and says where on its first
line; out of the wheel, it ends when its standard input does.
"""

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = os.environ.get("LLAMA_SERVER", "")


class Sidecar:
    def __init__(
        self, model: Path, *, slots: int = 4, context_tokens: int = 2048, embeddings: bool = False
    ) -> None:
        words = [str(model), str(slots), str(context_tokens), "embeddings" * embeddings]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.sidecar", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), "the server did not start"
        while not self._is_up():
            assert self._process.poll() is None, "the server did not start"
            time.sleep(0.05)

    def _is_up(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
            return True
        return False

    def kill(self) -> None:
        """As the kernel does it: no good-bye."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if PROGRAM:
            self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


def become(model: str, slots: int, context_tokens: int, embeddings: bool) -> None:
    """The program that LLAMA_SERVER names, with the same settings."""
    from bench.site import free_port

    port, batch = free_port(), context_tokens if embeddings else 32
    print(f"http://127.0.0.1:{port}", flush=True)
    settings = {
        "-m": model, "--port": port, "-np": slots, "-c": slots * context_tokens, "-t": 1,
        "-tb": 1, "-b": batch, "-ub": batch,
    }  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    more = ["--embedding", "--pooling", "mean"] if embeddings else []
    os.execv(PROGRAM, [PROGRAM, *words, "--host", "127.0.0.1", *more])


def serve(model: str, slots: int, context_tokens: int, embeddings: bool) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.port = 0
    parameters.n_parallel = slots
    parameters.n_ctx = slots * context_tokens
    parameters.n_batch = parameters.n_ubatch = 32  # it stops between batches only
    if embeddings:
        parameters.embedding = True
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        parameters.n_batch = parameters.n_ubatch = context_tokens  # a text must fit in one
    parameters.ui = False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    start = become if PROGRAM else serve
    start(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bool(sys.argv[4]))
