"""The Redis (or Valkey) at REDIS_URL, which may be away: then everybody goes on without it."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from django.conf import settings
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.exceptions import NoScriptError
from redis.retry import Retry

log = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0  # longest wait for one answer; then the database serves instead
CONNECT_SECONDS = 0.5
TRY_AGAIN_SECONDS = 0.5  # while it is away, one call in so long is let through


class Away(Exception):
    """Redis does not answer, or refuses to write."""


class Server:
    """Connections to one Redis, and whether it is away. Safe in threads.

    A call that fails opens the circuit: until one succeeds again, only one in
    TRY_AGAIN_SECONDS is made, and the others raise Away at once.
    """

    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(
            url,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            # Tried again by whoever calls, who knows what may be done twice.
            retry=Retry(NoBackoff(), 0),
        )
        self._away = False
        self._try_at = 0.0
        self._lock = threading.Lock()
        self._scripts: dict[str, Script] = {}

    @property
    def is_away(self) -> bool:
        return self._away

    @property
    def may_be_tried(self) -> bool:
        """Whether the next call would be made."""
        return not self._away or time.monotonic() >= self._try_at

    def run(self, script: str, key: str, *args: Any) -> Any:
        """Run a Lua script on what belongs to `key`. Raises Away."""
        return self.call(lambda: self._script(script)(keys=[key], args=args))

    def run_all(self, script: str, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """The same for several keys (key, args) in one round trip, in their order.

        Raises Away when any was not answered well: which of them were done is not known then.
        """
        return list(self.call(lambda: self._in_one_go(self._script(script).sha, script, calls)))

    def _in_one_go(
        self, sha: str, script: str, calls: Sequence[tuple[str, tuple[Any, ...]]]
    ) -> list[Any]:
        pipe = self.client.pipeline(transaction=False)
        for key, args in calls:
            pipe.evalsha(sha, 1, key, *args)
        answers = pipe.execute(raise_on_error=False)
        if unknown := [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]:
            self.client.script_load(script)
            again = self._in_one_go(sha, script, [calls[n] for n in unknown])
            answers = [again.pop(0) if n in unknown else one for n, one in enumerate(answers)]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def call(self, command: Callable[[], Any]) -> Any:
        """Make one call to the client. Raises Away."""
        self._refuse_while_away()
        try:
            answer = command()
            if self._away:  # a full one answers readers, and takes nothing
                self._write()
        except (RedisError, OSError) as error:
            self._went_away(error)
            raise Away(str(error)) from error
        self._answered()
        return answer

    def _script(self, text: str) -> Script:
        if text not in self._scripts:
            self._scripts[text] = self.client.register_script(text)
        return self._scripts[text]

    def look(self) -> None:
        """Whether it is back, and takes writes: a full one answers readers. Raises Away."""
        self.call(self._write)

    def takes_writes(self) -> bool:
        with contextlib.suppress(Away):
            self.look()
            return True
        return False

    def _write(self) -> None:
        self.client.set(name("look"), "", px=1000)

    def _refuse_while_away(self) -> None:
        with self._lock:
            if self._away and time.monotonic() < self._try_at:
                raise Away("It did not answer a moment ago.")
            self._try_at = time.monotonic() + TRY_AGAIN_SECONDS

    def _went_away(self, error: Exception) -> None:
        with self._lock:
            first, self._away = not self._away, True
            self._try_at = time.monotonic() + TRY_AGAIN_SECONDS
        if first:
            log.warning("Redis is away (%s); the database serves instead.", type(error).__name__)

    def _answered(self) -> None:
        with self._lock:
            was_away, self._away = self._away, False
        if was_away:
            log.warning("Redis is back.")


@lru_cache(maxsize=4)
def _server(url: str) -> Server:
    return Server(url)


def server() -> Server:
    """The one of this process."""
    return _server(settings.REDIS_URL)


def name(*parts: object) -> str:
    """A key or channel of this site's: several sites may share one Redis."""
    return ":".join(map(str, (settings.REDIS_PREFIX, *parts)))
