"""A real vLLM in child processes, on a free port of this machine."""

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from bench.site import free_port
from tests.vllm.install import FOLDER, PYTHON, VENV, WEIGHTS

READY_SECONDS = 600


class VllmServer:
    """threads: of the part that computes; vLLM would leave one core to its scheduler.

    compiles: the model, which makes it faster and takes minutes at every start. A start after a
    kill is on the same port.
    """

    def __init__(
        self, *, slots: int = 4, context_tokens: int = 2048, threads: int = 1,
        dtype: str = "bfloat16", compiles: bool = False,
    ) -> None:  # fmt: skip
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.command = [
            str(PYTHON), "-m", "vllm.entrypoints.openai.api_server",
            "--model", str(WEIGHTS), "--served-model-name", "smollm2",
            "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype,
            "--max-model-len", str(context_tokens), "--max-num-seqs", str(slots),
            # On a CPU, a prompt read in pieces for a request with a seed ends the whole server.
            "--no-enable-chunked-prefill",
            "--max-num-batched-tokens", str(max(2048, context_tokens)),
            "--enable-prefix-caching", "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log", *([] if compiles else ["--enforce-eager"]),
        ]  # fmt: skip
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Intel's threads, as vLLM's manual has it; they must not spin where others work too.
            "LD_PRELOAD": str(VENV / "lib" / "libiomp5.so"), "KMP_BLOCKTIME": "5",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CACHE_ROOT": str(FOLDER / "cache"),
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
        self.ready_seconds = 0.0
        self.start()

    def start(self) -> None:
        began = time.monotonic()
        with (FOLDER / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() - began > READY_SECONDS:
                self.kill()
                raise AssertionError(f"vLLM did not start; see {FOLDER / 'server.log'}")
            time.sleep(0.25)
        self.ready_seconds = time.monotonic() - began

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
            return True
        return False

    def running(self) -> int:
        """Answers it is writing, as it counts them itself."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        counts = [line for line in lines if line.startswith("vllm:num_requests_running{")]
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in counts))

    def memory(self) -> int:
        """Bytes of all its processes."""
        pages = 0
        for status in Path("/proc").glob("[0-9]*/statm"):
            with contextlib.suppress(OSError):
                if os.getpgid(int(status.parent.name)) == self._process.pid:
                    pages += int(status.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """All of it, as the kernel does it: no good-bye."""
        self._signal(signal.SIGKILL)
        self._process.wait(30)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.kill()  # its children, if any are left
