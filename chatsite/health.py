"""Is this process alive, may traffic be sent to it, and how much is there to do?"""

import threading
from collections.abc import Callable
from functools import cache

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from prometheus_client import CONTENT_TYPE_LATEST

from inference import metrics as inference_metrics
from inference import redis_server

draining = threading.Event()
"""Set when this process is about to end: it finishes what it has and gets nothing new."""


class NotReady(Exception):
    """The message says what is missing; it is shown to whoever asks."""


@never_cache
def livez(request: HttpRequest) -> JsonResponse:
    """Answers as long as the process can answer at all; touches nothing else."""
    return JsonResponse({"status": "alive"})


@never_cache
def readyz(request: HttpRequest) -> JsonResponse:
    """200 when every check passes, else 503; each check says "ok" or what is wrong."""
    results = {name: _result(check) for name, check in CHECKS.items()}
    ready = set(results.values()) == {"ok"}
    body: dict[str, object] = {"status": "ready" if ready else "not ready", "checks": results}
    if settings.REDIS_URL:  # told, but no reason to turn people away: the database serves instead
        body["redis"] = _redis()
    return JsonResponse(body, status=200 if ready else 503)


@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """For Prometheus, which names METRICS_TOKEN; without one in the settings, for nobody."""
    told = request.headers.get("Authorization", "")
    wanted = f"Bearer {settings.METRICS_TOKEN}"
    if not (settings.METRICS_TOKEN and constant_time_compare(told, wanted)):
        raise Http404
    return HttpResponse(inference_metrics.text(), content_type=CONTENT_TYPE_LATEST)


def _redis() -> str:
    try:
        redis_server.server().call(redis_server.server().client.ping)
    except redis_server.Away:
        return "away"
    return "ok"


def _result(check: Callable[[], None]) -> str:
    try:
        check()
    except NotReady as error:
        return str(error)
    except DatabaseError:
        return "the database does not answer"
    return "ok"


def database_answers() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def migrations_are_applied() -> None:
    if not _is_migrated():
        _is_migrated.cache_clear()
        raise NotReady("migrations are waiting: run ./manage.py migrate")


@cache
def _is_migrated() -> bool:
    executor = MigrationExecutor(connection)
    return not executor.migration_plan(executor.loader.graph.leaf_nodes())


def is_not_draining() -> None:
    if draining.is_set():
        raise NotReady("draining: this process is about to end")


CHECKS: dict[str, Callable[[], None]] = {
    "database": database_answers,
    "migrations": migrations_are_applied,
    "draining": is_not_draining,
}
