"""Whose socket it is, asked again and again: a session can end while a socket is open.

From the database, never from a copy: a socket must not outlive a log-out.
"""

import re
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.models import Session
from django.db.models.functions import Now
from django.http import parse_cookie
from django.utils.crypto import constant_time_compare

from accounts.models import User

KEY = re.compile(r"[a-z0-9]{8,40}")
# What a session rests upon, as it is stored: its own data, and the person's password. As long as
# both are the same, and the person is active, whoever was let in may stay.
Standing = tuple[str, str]
NOTHING: Standing = ("", "")


def session_key(scope: dict[str, Any]) -> str:
    """The session cookie of a WebSocket's handshake; empty when there is none."""
    headers = dict(scope.get("headers", ()))
    cookies = parse_cookie(headers.get(b"cookie", b"").decode("latin1"))
    return str(cookies.get(settings.SESSION_COOKIE_NAME, ""))


def person_of(key: str) -> tuple[User | None, Standing]:
    """The person logged in under this session now; reads only, changes nothing.

    None when the session is gone or expired, the person disabled or their password changed.
    """
    session = _living([key]).first() if KEY.fullmatch(key) else None
    data = session.get_decoded() if session else {}
    user_id = data.get(SESSION_KEY)
    user = (
        User.objects.filter(pk=user_id, is_active=True).only("password").first()
        if user_id
        else None
    )
    if session is None or user is None:
        return None, NOTHING
    known = data.get(HASH_SESSION_KEY, "")
    is_theirs = constant_time_compare(known, user.get_session_auth_hash())
    return user if is_theirs else None, (session.session_data, user.password)


def standings(people: Mapping[str, int]) -> dict[str, Standing]:
    """Of those sessions (key: the person's id) that have not ended; the rest is left out."""
    found = dict(_living(people).values_list("session_key", "session_data"))
    active = User.objects.filter(pk__in=set(people.values()), is_active=True)
    passwords = dict(active.values_list("pk", "password"))
    return {
        key: (data, passwords[people[key]])
        for key, data in found.items()
        if people[key] in passwords
    }


def _living(keys: Any) -> Any:
    return Session.objects.filter(session_key__in=list(keys), expire_date__gt=Now())
