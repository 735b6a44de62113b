"""Wake-ups between processes on several machines, over Redis's publish and subscribe.

A message has no content: its channel is the topic. One connection for each event loop, made
again when it breaks or falls silent; rings meanwhile are lost, which readers are used to.
"""

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from django.conf import settings
from redis import RedisError
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from inference import redis_server
from inference.redis_server import Away

if TYPE_CHECKING:
    from inference.doorbell import Bells

log = logging.getLogger(__name__)

PING_SECONDS = 10.0
SILENT_SECONDS = 25.0  # two pings unanswered: the other end is gone without a word
RETRY_SECONDS = (0.1, 2.0)
CONNECT_SECONDS = 5.0  # with everything that comes before the first message


def channel(topic: str) -> str:
    return redis_server.name("bell", topic)


def ring(topic: str) -> None:
    """Never raises: readers also look by themselves."""
    with contextlib.suppress(Away):
        redis = redis_server.server()
        redis.call(lambda: redis.client.publish(channel(topic), ""))


class Line:
    """One event loop's subscriptions, alive while there are any topics."""

    def __init__(self, bells: "Bells") -> None:
        self._bells = bells
        self._line: PubSub | None = None
        self._task: asyncio.Task[None] | None = None
        self._changes: set[asyncio.Task[None]] = set()
        self._heard_at = 0.0

    def open(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._listen())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def listen_to(self, topic: str) -> None:
        if self._line is not None:
            self._change(self._line.subscribe(channel(topic)))

    def forget(self, topic: str) -> None:
        if self._line is not None:
            self._change(self._line.unsubscribe(channel(topic)))

    def _change(self, command: Any) -> None:
        async def send() -> None:
            # A broken line is noticed by whoever listens; it asks for every topic anew.
            with contextlib.suppress(RedisError, OSError, RuntimeError):
                await command

        task = asyncio.get_running_loop().create_task(send())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)

    async def _listen(self) -> None:
        wait, longest = RETRY_SECONDS
        while True:
            try:
                async with _connected() as line:
                    await self._hear(line)
            except Exception as error:
                log.info("The line for wake-ups broke (%s).", type(error).__name__)
            # Heard something: it was up. All processes lose it together, and come back apart.
            wait = RETRY_SECONDS[0] if self._heard_at else min(wait * 2, longest)
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))

    async def _hear(self, line: PubSub) -> None:
        self._heard_at = 0.0
        topics = [channel(topic) for topic in self._bells.topics] or [channel("nothing")]
        async with asyncio.timeout(CONNECT_SECONDS):
            await line.subscribe(*topics)
        self._line, started = line, time.monotonic()
        if late := {channel(topic) for topic in self._bells.topics} - set(topics):
            await line.subscribe(*late)  # asked for while this line was not there yet
        pinged = started
        try:
            while True:
                message = await line.get_message(timeout=PING_SECONDS)
                now = time.monotonic()
                if message is not None:
                    self._heard_at = now
                    self._pass_on(message)
                if now - (self._heard_at or started) > SILENT_SECONDS:
                    raise TimeoutError
                if now - pinged > PING_SECONDS:
                    pinged = now
                    await line.ping()
        finally:
            self._line = None

    def _pass_on(self, message: dict[str, Any]) -> None:
        """A new subscription rings too: what was published before it was not heard."""
        if message["type"] in ("message", "subscribe"):
            topic = message["channel"].decode().removeprefix(channel(""))
            self._bells.ring(topic)


@contextlib.asynccontextmanager
async def _connected() -> Any:
    # No time limit on reading: a line that is silent for a minute is not a broken one.
    client = Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=None,
        socket_connect_timeout=redis_server.CONNECT_SECONDS,
    )
    line = client.pubsub()
    try:
        yield line
    finally:
        with contextlib.suppress(RedisError, OSError):
            await line.aclose()  # type: ignore[no-untyped-call]
        await client.aclose()
