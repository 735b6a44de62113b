"""Sessions of a site with Redis: rows of the database, with a copy in the cache."""

from typing import Any

from django.contrib.sessions.backends.cached_db import SessionStore as CachedStore

from accounts.sessions import Checked

# A log-out deletes the row and the copy; a copy that it missed, because Redis was away or somebody
# read the row just before, must not let anybody in for longer than this.
COPY_SECONDS = 5


class SessionStore(Checked, CachedStore):
    cache_key_prefix = "session."
    _cache: Any  # these three are Django's
    _session: Any
    _get_session_from_db: Any

    def load(self) -> dict[str, Any]:
        data: dict[str, Any] | None = self._cache.get(self.cache_key)
        if data is None and (row := self._get_session_from_db()):
            data = self.decode(row.session_data)
            self._cache.set(self.cache_key, data, COPY_SECONDS)
        return data or {}

    def save(self, must_create: bool = False) -> None:
        super(CachedStore, self).save(must_create)
        self._cache.set(self.cache_key, self._session, COPY_SECONDS)
