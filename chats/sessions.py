"""Whose socket it is, asked again and again: a session can end while a socket is open.

From the database, never from a copy: a socket must not outlive a log-out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.models import Session
from django.db.models.functions import Now
from django.http import parse_cookie
from django.utils.crypto import constant_time_compare

from accounts.models import User
from accounts.sessions import KEY

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
    return people_of([key])[0]


def people_of(keys: Sequence[str]) -> list[tuple[User | None, Standing]]:
    """The same for several, in their order."""
    sessions = {one.session_key: one for one in _living(filter(KEY.fullmatch, keys))}
    known = {key: session.get_decoded() for key, session in sessions.items()}
    ids = {data[SESSION_KEY] for data in known.values() if SESSION_KEY in data}
    active = User.objects.filter(pk__in=ids, is_active=True).only("password")
    users = {str(user.pk): user for user in active}
    found = {
        key: _known(sessions[key], data.get(HASH_SESSION_KEY, ""), users[data[SESSION_KEY]])
        for key, data in known.items()
        if data.get(SESSION_KEY) in users
    }
    return [found.get(key, (None, NOTHING)) for key in keys]


def _known(session: Session, proof: str, user: User) -> tuple[User | None, Standing]:
    is_theirs = constant_time_compare(proof, user.get_session_auth_hash())
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
