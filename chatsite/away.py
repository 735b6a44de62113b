"""While the database is away: a read is tried once more, the rest hears when to come back."""

import sqlite3
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from django.db import InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from accounts.limits import wants_json
from chatsite.errors import something_went_wrong

RETRY_SECONDS = 5
ENDED_WHILE_IDLE = "25P03"  # PostgreSQL has ended a session that was frozen in a transaction
SENTENCE = "The database does not answer at the moment. Please try again."


def is_away(error: BaseException | None) -> bool:
    """Whether the same may succeed soon: no connection, a broken one, a lock, a full disk."""
    if getattr(getattr(error, "__cause__", None), "sqlstate", "") == ENDED_WHILE_IDLE:
        return True
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    # SQLite's word for a statement that can never succeed, such as one on a missing table.
    code = getattr(error.__cause__, "sqlite_errorcode", None)
    return code != sqlite3.SQLITE_ERROR


class ReadAgain:
    """A read whose connection broke is tried once more, with another connection."""

    def __init__(self, answer: Callable[[HttpRequest], HttpResponse]) -> None:
        self._answer = answer

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._answer(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        if request.method not in ("GET", "HEAD") or not _broke(error):
            return None
        connection.close_if_unusable_or_obsolete()
        match = request.resolver_match
        assert match
        answer: Any = match.func(request, *match.args, **match.kwargs)
        # Django renders what a view answers, but not what comes from here.
        return answer.render() if hasattr(answer, "render") else answer  # type: ignore[no-any-return]


def _broke(error: Exception) -> bool:
    """Whether it was only this connection: who has waited for one has waited long enough."""
    if connection.vendor != "postgresql" or not is_away(error):
        return False
    from psycopg_pool import PoolTimeout

    return not isinstance(error.__cause__, PoolTimeout)


def server_error(request: HttpRequest) -> HttpResponse:
    """The page for errors nobody expected: 503 when it was the database that is away, else 500."""
    if not is_away(sys.exc_info()[1]):
        return something_went_wrong(request)
    headers = {"Retry-After": str(RETRY_SECONDS), "Cache-Control": "no-store"}
    status = HTTPStatus.SERVICE_UNAVAILABLE
    if wants_json(request):
        error = {"code": "away", "message": SENTENCE, "retry_after": RETRY_SECONDS}
        return JsonResponse({"error": error}, status=status, headers=headers)
    # Without the request, whose person and messages may be in the database.
    again = RETRY_SECONDS if request.method == "GET" else None
    page = render_to_string("503.html", {"again": again})
    return HttpResponse(page, status=status, headers=headers)
