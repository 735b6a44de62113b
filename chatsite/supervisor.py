"""`manage.py serve`: keeps the web process and the workers running, and ends them together.

If this process dies without a word (kill -9), all children see the end of the lifeline pipe
and end by themselves; the lock on the data goes with the last of them.
"""

import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection

from chats.purge import keep_house
from chatsite.children import Child, Crew, bury
from inference.models import Worker

log = logging.getLogger(__name__)

GRACE_SECONDS = 25.0
HOUSE_SECONDS = 3600.0
BASE = Path(settings.BASE_DIR)
ANY_ADDRESS = {"0.0.0.0", "::", ""}  # noqa: S104 (recognised here, not bound to)


class CannotServe(Exception):
    """One clear sentence about what is wrong and what to do."""


def take_lock() -> int:
    """Hold DATA_DIR for this installation. The children inherit the lock: it lasts as they do."""
    path = Path(settings.DATA_DIR) / "serve.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _wait_for_an_earlier_run(descriptor)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, address_to_show().encode(), 0)
    os.set_inheritable(descriptor, True)
    return descriptor


def _wait_for_an_earlier_run(descriptor: int) -> None:
    """Its supervisor may be dead and its worker still draining. Raises CannotServe if it lives."""
    address = os.pread(descriptor, 200, 0).decode()
    deadline = time.monotonic() + settings.DRAIN_SECONDS + GRACE_SECONDS
    log.info("Another run holds this data; waiting in case it is about to end.")
    while time.monotonic() < deadline and not _is_serving(address):
        time.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    os.close(descriptor)
    raise CannotServe(
        f"Chatsite is already running on this data, at {address or 'another address'}. "
        "Use that one, stop it, or start with another DATA_DIR."
    )


def _is_serving(address: str) -> bool:
    """Whether a site answers there and is neither ending nor still loading."""
    where = urlsplit(address)
    client = HTTPConnection(where.hostname or "", where.port or 0, timeout=1)
    try:
        client.request("GET", "/readyz")
        return client.getresponse().status != HTTPStatus.SERVICE_UNAVAILABLE
    except (OSError, HTTPException):
        return False
    finally:
        client.close()


def is_listening(address: str) -> bool:
    """Whether somebody takes connections at the address of a site."""
    where = urlsplit(address)
    try:
        socket.create_connection((where.hostname or "", where.port or 0), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


def address_to_show() -> str:
    host = "127.0.0.1" if settings.HOST in ANY_ADDRESS else settings.HOST
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{settings.PORT}/"


def check_port() -> None:
    family = socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.HOST, settings.PORT))
        except OSError as error:
            is_taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            cure = "another port: PORT=8001 make run" if is_taken else "another HOST"
            raise CannotServe(
                f"Cannot listen on {settings.HOST}:{settings.PORT} ({error.strerror}). "
                f"Choose {cure}"
            ) from error


@dataclass(slots=True)
class Supervisor:
    lock: int
    stopping: bool = False
    failure: str = ""
    on_ready: Callable[[], None] = lambda: None
    is_ready: bool = False
    looked_at: float = 0.0
    house_kept_at: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Supervise until SIGTERM or Ctrl-C. Raises CannotServe when a child cannot live."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._void_leases_of_earlier_runs()
        reader, writer = os.pipe()
        web = Child(lambda: self._start_web(reader), name="The web process")
        crew = Crew(lambda words, names: self._manage(words, names, reader))
        while not self.stopping:
            web.ensure()
            crew.ensure()
            self._keep_house()
            self._tell_when_ready(crew)
            self._stop_if_hopeless(crew)
            time.sleep(0.05)
        os.truncate(self.lock, 0)  # a new start waits for this one to end
        self._end(crew.processes)  # first: people see what is still written
        self._end([web.process] if web.process else [])
        os.close(writer)
        if self.failure:
            raise CannotServe(self.failure)

    def _stop_if_hopeless(self, crew: Crew) -> None:
        if crew.is_hopeless:
            self.stopping = True
            self.failure = (
                "The model could not be loaded (see above). Run: ./manage.py models verify"
            )

    def _tell_when_ready(self, crew: Crew) -> None:
        if not self.is_ready and time.monotonic() > self.looked_at + 0.25:
            self.looked_at = time.monotonic()
            with contextlib.suppress(DatabaseError):
                self.is_ready = is_listening(address_to_show()) and crew.is_ready()
            if self.is_ready:
                connection.close()
                self.on_ready()

    def _keep_house(self) -> None:
        if time.monotonic() < self.house_kept_at + HOUSE_SECONDS:
            return
        self.house_kept_at = time.monotonic()
        try:
            keep_house()
        except DatabaseError:
            log.exception("Housekeeping failed; trying again in an hour.")
        finally:
            connection.close()

    def _stop(self, number: int, frame: object) -> None:
        self.stopping = True

    def _void_leases_of_earlier_runs(self) -> None:
        """We hold the lock, so no worker of this installation is alive."""
        for worker in Worker.objects.filter(node=Worker.this_node()).exclude(state="gone"):
            bury(worker.boot_id)

    def _start_web(self, lifeline: int) -> subprocess.Popen[bytes]:
        gunicorn = [sys.executable, "-m", "gunicorn", "-c", str(BASE / "deploy/gunicorn.conf.py")]
        return self._spawn(gunicorn, {}, lifeline)

    def _manage(
        self, words: list[str], environment: dict[str, str], lifeline: int
    ) -> subprocess.Popen[bytes]:
        return self._spawn([sys.executable, str(BASE / "manage.py"), *words], environment, lifeline)

    def _spawn(
        self, command: list[str], environment: dict[str, str], lifeline: int
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env={**os.environ, **environment, "CHATSITE_LIFELINE": str(lifeline)},
            cwd=BASE,
            pass_fds=(self.lock, lifeline),
            start_new_session=True,  # Ctrl-C reaches us alone; we end the children in order
        )

    def _end(self, running: list[subprocess.Popen[bytes]]) -> None:
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
