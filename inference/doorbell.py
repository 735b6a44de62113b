"""Wake-ups between the processes of one installation. A doorbell only rings.

With REDIS_URL they go through Redis (redis_bell.py). Without, each listening process binds a
Unix datagram socket in DATA_DIR/run; `ring` sends the topic's name to all of them. A ring may be
lost (a full buffer, a listener not yet bound): readers therefore also look by themselves at
least once a second.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

from django.conf import settings

from inference import redis_bell, redis_server

AWAY_SECONDS = 0.25  # between two looks while Redis is away
MAX_PATH = 100  # of a Unix socket's address; the kernel's limit is 104 to 108


def directory() -> Path:
    """Where the sockets are, by the shorter of its two spellings: their paths are limited."""
    absolute = Path(settings.DATA_DIR) / "run"
    relative = Path(os.path.relpath(absolute))
    return min(absolute, relative, key=lambda path: len(str(path)))


def ring(topic: str) -> None:
    """Wake every process that listens; never raises and hardly waits: readers also look."""
    if settings.REDIS_URL:
        redis_bell.ring(topic)
        return
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        sender.setblocking(False)
        for path in _listeners():
            _send(sender, topic, path)


def _listeners() -> list[str]:
    try:
        with os.scandir(directory()) as entries:
            return [entry.path for entry in entries if entry.name.endswith(".bell")]
    except FileNotFoundError:
        return []


def _send(sender: socket.socket, topic: str, path: str) -> None:
    try:
        sender.sendto(topic.encode(), path)
    except (ConnectionRefusedError, FileNotFoundError):
        # Its process died without clean-up.
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
    except BlockingIOError:
        pass  # its buffer is full of rings: it is about to look anyway


class Bell:
    """One subscriber's wake-up flag."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, timeout: float) -> bool:
        """True on a ring since the last call, False after `timeout` seconds without one."""
        try:
            async with asyncio.timeout(timeout):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Line(Protocol):
    """What brings rings to the bells of one event loop."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def listen_to(self, topic: str) -> None: ...

    def forget(self, topic: str) -> None: ...


class Bells:
    """This event loop's subscribers; their line is open while there are any."""

    def __init__(self) -> None:
        self._bells: dict[str, set[Bell]] = defaultdict(set)
        self._line: Line = redis_bell.Line(self) if settings.REDIS_URL else _Socket(self)

    @property
    def topics(self) -> list[str]:
        return list(self._bells)

    def ring(self, topic: str) -> None:
        for bell in tuple(self._bells.get(topic, ())):
            bell.ring()

    def add(self, bell: Bell, topics: tuple[str, ...]) -> None:
        if not self._bells:
            self._line.open()
        for topic in topics:
            if topic not in self._bells:
                self._line.listen_to(topic)
            self._bells[topic].add(bell)

    def remove(self, bell: Bell, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._bells[topic].discard(bell)
            if not self._bells[topic]:
                del self._bells[topic]
                self._line.forget(topic)
        if not self._bells:
            self._line.close()


class _Socket:
    """The embedded line: a Unix socket, to which every topic comes."""

    def __init__(self, bells: Bells) -> None:
        self._bells = bells
        self._socket: socket.socket | None = None

    def open(self) -> None:
        folder = directory()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = str(folder / f"{os.getpid()}-{secrets.token_hex(3)}.bell")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        # A ring between the file's appearance and the listening would take it for a dead one's.
        listener.bind(f"{path}.new")
        Path(f"{path}.new").rename(path)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._read)
        self._path, self._socket = path, listener

    def close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            with contextlib.suppress(FileNotFoundError):
                Path(self._path).unlink()

    def listen_to(self, topic: str) -> None:
        """All come."""

    def forget(self, topic: str) -> None:
        """Rings without a subscriber do nothing."""

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._socket is not None:
                self._bells.ring(self._socket.recv(512).decode(errors="replace"))


_by_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, Bells]" = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def subscribe(*topics: str) -> AsyncIterator[Bell]:
    """A Bell that rings when any process rings one of `topics`."""
    loop = asyncio.get_running_loop()
    if loop not in _by_loop:
        _by_loop[loop] = Bells()
    bells, bell = _by_loop[loop], Bell()
    bells.add(bell, topics)
    try:
        yield bell
    finally:
        bells.remove(bell, topics)


def patience(seconds: float) -> float:
    """How long a reader may wait for a ring that is lost: less while none can come."""
    if settings.REDIS_URL and redis_server.server().is_away:
        return min(seconds, AWAY_SECONDS)
    return seconds
