"""The cache of a site with Redis: counts of limits and copies of sessions, for all replicas.

When Redis is away, a table of the database counts instead: a limit is never open.
"""

import json
from typing import Any

from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.redis import RedisCache

from inference import redis_server
from inference.redis_server import Away

TABLE = "accounts_cacheentry"  # CacheEntry


class Json:
    """What is in Redis is data: Django's own serializer would run what it finds there."""

    def dumps(self, value: Any) -> Any:
        return value if type(value) is int else json.dumps(value)

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class SharedCache(RedisCache):
    """Redis's, with a DatabaseCache behind it."""

    def __init__(self, server: str, params: dict[str, Any]) -> None:
        super().__init__(server, {**params, "OPTIONS": {"serializer": Json()}})
        self._table = DatabaseCache(TABLE, {**params, "OPTIONS": {"MAX_ENTRIES": 200_000}})

    def _either(self, name: str, *args: Any, **kwargs: Any) -> Any:
        in_redis = getattr(super(), name)
        try:
            return redis_server.server().call(lambda: in_redis(*args, **kwargs))
        except Away:
            return getattr(self._table, name)(*args, **kwargs)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return self._either("get", *args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> None:
        self._either("set", *args, **kwargs)

    def add(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self._either("add", *args, **kwargs))

    def incr(self, *args: Any, **kwargs: Any) -> int:
        return int(self._either("incr", *args, **kwargs))

    def touch(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self._either("touch", *args, **kwargs))

    def delete(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self._either("delete", *args, **kwargs))

    def has_key(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self._either("has_key", *args, **kwargs))

    def clear(self) -> None:
        """Django's would empty the whole Redis."""
        raise NotImplementedError("The Redis is shared with running answers.")
