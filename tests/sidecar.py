"""A real llama-server in a child process: llama.cpp's own, out of the wheel of xllamacpp.

Run as a program it serves a model file on a free port of this machine, says where on its first
line, and ends when its standard input does.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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

    def kill(self) -> None:
        """As the kernel does it: no good-bye."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


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
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), bool(sys.argv[4]))
