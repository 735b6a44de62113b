"""A send that comes twice, from a double click or a lost reply, makes one row."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from django.db import IntegrityError

P = ParamSpec("P")
T = TypeVar("T")


class OncePerSend:
    """For rows that a person's send makes: its client_id is stored with them, once."""

    def knows(self, user: Any, client_id: UUID) -> bool:
        """Whether this person's send has made a row here."""
        return bool(self.filter(user=user.pk, client_id=client_id).exists())  # type: ignore[attr-defined]


def repeatable(verb: Callable[P, T]) -> Callable[P, T]:
    """For verbs that first look for the row their client_id has made.

    When an equal send was faster by less than that look, a second try finds its row.
    """

    @functools.wraps(verb)
    def tried_twice(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return verb(*args, **kwargs)
        except IntegrityError:
            return verb(*args, **kwargs)

    return tried_twice
