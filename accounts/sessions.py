"""Sessions are rows of the database."""

import re

from django.contrib.sessions.backends.db import SessionStore as StoredStore

KEY = re.compile(r"[a-z0-9]{8,40}")


class Checked:
    """A cookie's value that no session of ours has is not looked for: it may have any form."""

    def _validate_session_key(self, key: str | None) -> bool:
        return bool(key and KEY.fullmatch(key))


class SessionStore(Checked, StoredStore):
    pass
