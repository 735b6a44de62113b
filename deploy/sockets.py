"""gunicorn's connections, and what they lack: limits on files, time and frames, a sign of life.

One timer for each socket and no task: thousands are open and idle.
"""

import asyncio
import contextlib
import resource
from typing import Any

from gunicorn.asgi import protocol, websocket
from gunicorn.workers import gasgi

KEPT_FILES = 64  # of the limit: for the database, Redis, and pages
KEPT_FROM_PAGES = 24  # of those: for the database and Redis
MANY_FILES = 10_240
HEADER_SECONDS = 10.0  # for the first request of a connection; gunicorn sees to the others
MOST_FRAMES = 200  # in FRAME_SECONDS, of one reader; a page sends a few when it opens
FRAME_SECONDS = 10.0
FRAMES_AT_ONCE = 16  # read before others have a turn
PING_SECONDS = 20.0  # between two pings; a reader that has not answered one by the next is gone
STUCK_LOOKS = 3  # at what nothing was heard of meanwhile; the outbox gives up after 30 s
WAITING_BYTES = 16 * 1024  # in gunicorn, on their way to a reader: the outbox holds the rest
LINGER_SECONDS = 10.0  # for a reader who was told to leave, to take what is on its way


class Socket(websocket.WebSocketProtocol):  # type: ignore[misc]  # gunicorn has no types
    """Answers 503 while files are short or the process is about to end; ends what is half open."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_asked, self._stuck = False, 0
        self._frames, self._counted_from = 0, 0.0

    def feed_data(self, data: bytes) -> None:
        self._is_asked, self._stuck = False, 0
        super().feed_data(data)

    async def run(self) -> None:
        from chatsite import health  # not in the process that starts us: it has no Django

        if health.draining.is_set() or not has_room(self.transport):
            self._deny(503, "Service Unavailable")
            return
        loop = asyncio.get_running_loop()
        connection = self.transport.get_protocol()
        connection.cfg = Impatient(connection.cfg)
        self.transport.set_write_buffer_limits(high=WAITING_BYTES)
        self._timer = loop.call_later(PING_SECONDS, self._ping, loop)
        try:
            await super().run()
        finally:
            self._timer.cancel()
            if self.transport.get_write_buffer_size():
                # A close waits for what is unsent, and its reader may never take that.
                loop.call_later(LINGER_SECONDS, self.transport.abort)

    async def _read_frame(self) -> Any:
        """A frame; None ends the socket. Empty ones pass every limit on size."""
        frame = await super()._read_frame()
        now = asyncio.get_running_loop().time()
        if now - self._counted_from > FRAME_SECONDS:
            self._frames, self._counted_from = 0, now
        self._frames += 1
        if self._frames > MOST_FRAMES:
            await self._send_close(websocket.CLOSE_POLICY_VIOLATION, "Too many frames")
            return None
        if self._frames % FRAMES_AT_ONCE == 0:
            await asyncio.sleep(0)
        return frame

    def _unmask(self, payload: bytes, masking_key: bytes) -> bytes:
        """As gunicorn's, but not byte by byte in Python: it takes 7 ms for 64 KiB, in which nobody
        else is served, and whoever is still to be refused may send that."""
        count = len(payload)
        mask = (bytes(masking_key) * (count // 4 + 1))[:count]
        return (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(count, "big")

    def _ping(self, loop: asyncio.AbstractEventLoop) -> None:
        """Behind what waits for a slow reader a ping would not arrive: that gets longer."""
        if self.transport.get_write_buffer_size():
            self._stuck += 1
        elif not self._is_asked:
            self._is_asked = True
            self._write_ping()
        else:
            self._stuck = STUCK_LOOKS
        if self._stuck < STUCK_LOOKS:
            self._timer = loop.call_later(PING_SECONDS, self._ping, loop)
        else:
            self.transport.abort()

    def _write_ping(self) -> None:
        if self.accepted and not self.closed:
            self.transport.write(bytes([0x80 | websocket.OPCODE_PING, 0]))


class Impatient:
    """gunicorn's settings for a socket: when its line has broken it ends at once.

    Else gunicorn would keep all of it for three seconds, long enough for the collector of garbage
    to take it for something that lasts: 18 KB for each page that was left, for minutes.
    """

    asgi_disconnect_grace_period = 0

    def __init__(self, settings: Any) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)


class Connection(protocol.ASGIProtocol):  # type: ignore[misc]
    """Has some seconds for its first request; is closed at once while files are very short."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not has_room(transport, KEPT_FROM_PAGES):
            transport.abort()
            return
        # Taken back by gunicorn, like its own for the next request, when the headers are there.
        self._keepalive_handle = self.worker.loop.call_later(
            HEADER_SECONDS, self._keepalive_timeout
        )


def has_room(transport: Any, kept: int = KEPT_FILES) -> bool:
    """The system gives out the lowest number that is free: every one below it is in use."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = int(transport.get_extra_info("socket").fileno())
    return soft == resource.RLIM_INFINITY or number < soft - kept


def install() -> None:
    """gunicorn looks for its classes by these names each time one is opened."""
    gasgi.ASGIProtocol = Connection
    websocket.WebSocketProtocol = Socket


def allow_many() -> None:
    """As many open files as the system lets this process have without asking anybody."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (hard, MANY_FILES):
        # What macOS calls unlimited it does not give; then fewer, or what there is.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return
