"""Local wake-ups between the processes of one installation. A doorbell only rings.

Each listening process binds a Unix datagram socket in DATA_DIR/run; `ring` sends the
topic's name to all of them. A ring may be lost (a full buffer, a listener not yet bound):
readers therefore also look by themselves at least once a second.
"""

import asyncio
import contextlib
import os
import secrets
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from weakref import WeakKeyDictionary

from django.conf import settings

MAX_PATH = 100  # of a Unix socket's address; the kernel's limit is 104 to 108


def directory() -> Path:
    """Where the sockets are, by the shorter of its two spellings: their paths are limited."""
    absolute = Path(settings.DATA_DIR) / "run"
    relative = Path(os.path.relpath(absolute))
    return min(absolute, relative, key=lambda path: len(str(path)))


def ring(topic: str) -> None:
    """Wake every process that listens; never blocks and never raises: readers also look."""
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


class _Listener:
    """This event loop's socket and its subscribers, alive while there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.bells: dict[str, set[Bell]] = defaultdict(set)
        self.socket: socket.socket | None = None

    def add(self, bell: Bell, topics: tuple[str, ...]) -> None:
        if self.socket is None:
            self._open()
        for topic in topics:
            self.bells[topic].add(bell)

    def remove(self, bell: Bell, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self.bells[topic].discard(bell)
            if not self.bells[topic]:
                del self.bells[topic]
        if not self.bells:
            self._close()

    def _open(self) -> None:
        folder = directory()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = str(folder / f"{os.getpid()}-{secrets.token_hex(3)}.bell")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        # A ring between the file's appearance and the listening would take it for a dead one's.
        listener.bind(f"{path}.new")
        Path(f"{path}.new").rename(path)
        self.loop.add_reader(listener, self._read)
        self.path, self.socket = path, listener

    def _close(self) -> None:
        if self.socket is not None:
            self.loop.remove_reader(self.socket)
            self.socket.close()
            self.socket = None
            with contextlib.suppress(FileNotFoundError):
                Path(self.path).unlink()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.socket is not None:
                topic = self.socket.recv(512).decode(errors="replace")
                for bell in tuple(self.bells.get(topic, ())):
                    bell.ring()


_by_loop: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Listener]" = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def subscribe(*topics: str) -> AsyncIterator[Bell]:
    """A Bell that rings when any process rings one of `topics`."""
    loop = asyncio.get_running_loop()
    listener = _by_loop.setdefault(loop, _Listener(loop))
    bell = Bell()
    listener.add(bell, topics)
    try:
        yield bell
    finally:
        listener.remove(bell, topics)
