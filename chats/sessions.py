"""Whose socket it is, asked again and again: a session can end while a socket is open."""

from typing import Any

from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore
from django.http import parse_cookie
from django.utils.crypto import constant_time_compare

from accounts.models import User


def session_key(scope: dict[str, Any]) -> str:
    """The session cookie of a WebSocket's handshake; empty when there is none."""
    headers = dict(scope.get("headers", ()))
    cookies = parse_cookie(headers.get(b"cookie", b"").decode("latin1"))
    return str(cookies.get(settings.SESSION_COOKIE_NAME, ""))


def person_of(key: str) -> User | None:
    """The person logged in under this session now; reads only, changes nothing.

    From the database, never from a copy: a socket must not outlive a log-out.
    None when the session is gone or expired, the person disabled or their password changed.
    """
    session = SessionStore(key).load() if key else {}
    user_id = session.get(SESSION_KEY)
    user = (
        User.objects.filter(pk=user_id, is_active=True).only("password").first()
        if user_id
        else None
    )
    if user is None:
        return None
    known = session.get(HASH_SESSION_KEY, "")
    return user if constant_time_compare(known, user.get_session_auth_hash()) else None
