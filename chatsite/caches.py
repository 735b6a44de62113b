"""The cache of a site with Redis: counts of limits and copies of sessions, for all replicas.

When Redis is away, a table counts instead, so that a limit is never open; nothing else is kept
there.
"""

import contextlib
import json
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.redis import RedisCache
from redis.backoff import NoBackoff
from redis.retry import Retry

from accounts.counts import CountsInTable
from inference import redis_server
from inference.redis_server import Away

LATE_SECONDS = 90_000  # a day, the longest window, and more; its key names the window


class Json:
    """What is in Redis is data: Django's own serializer would run what it finds there."""

    def dumps(self, value: Any) -> Any:
        return value if type(value) is int else json.dumps(value)

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class SharedCache(RedisCache):
    def __init__(self, server: str, params: dict[str, Any]) -> None:
        options = {
            "serializer": Json(),
            "socket_timeout": redis_server.ANSWER_SECONDS,
            "socket_connect_timeout": redis_server.CONNECT_SECONDS,
            "retry": Retry(NoBackoff(), 0),
        }
        super().__init__(server, {**params, "OPTIONS": options})
        self._table = CountsInTable()

    def get(self, key: str, default: Any = None, version: int | None = None) -> Any:
        try:
            return self._ask("get", key, default, version)
        except Away:
            return self._table.get(self._name(key, version), default)

    def add(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        try:
            return bool(self._ask("add", key, value, timeout, version))
        except Away:
            if type(value) is not int:
                return False
            seconds = self.get_backend_timeout(timeout) or 0
            return self._table.add(self._name(key, version), value, seconds)

    def incr(self, key: str, delta: int = 1, version: int | None = None) -> int:
        """Begins a count that is not there: it was added to the other store a moment ago."""
        for _ in range(2):
            with contextlib.suppress(ValueError):
                return self._incr(key, delta, version)
            if self.add(key, delta, LATE_SECONDS, version):
                break
        return delta

    def _incr(self, key: str, delta: int, version: int | None) -> int:
        try:
            return int(self._ask("incr", key, delta, version))
        except Away:
            return self._table.incr(self._name(key, version), delta)

    def set(
        self, key: str, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        self._if_there("set", key, value, timeout, version)

    def touch(self, key: str, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        return bool(self._if_there("touch", key, timeout, version))

    def delete(self, key: str, version: int | None = None) -> bool:
        return bool(self._if_there("delete", key, version))

    def has_key(self, key: str, version: int | None = None) -> bool:
        return bool(self._if_there("has_key", key, version))

    def clear(self) -> None:
        """Django's would empty the whole Redis."""
        raise NotImplementedError("The Redis is shared with running answers.")

    def _ask(self, name: str, *args: Any) -> Any:
        """Raises Away."""
        in_redis = getattr(super(), name)
        return redis_server.server().call(lambda: in_redis(*args))

    def _if_there(self, name: str, *args: Any) -> Any:
        try:
            return self._ask(name, *args)
        except Away:
            return None

    def _name(self, key: str, version: int | None) -> str:
        return str(self.make_and_validate_key(key, version=version))
