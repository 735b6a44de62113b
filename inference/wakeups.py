"""A run waits: wake a worker that has its release. A wake-up may be lost; workers also look.

Without Redis the doorbell wakes every worker there is. With Redis there may be many, so a
message goes through Celery to one of those that run the model.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from django.conf import settings
from redis import RedisError

from inference import doorbell, redis_server

if TYPE_CHECKING:
    from inference.models import Release

EXPIRES_SECONDS = 30.0  # until then a worker that looks by itself has found the run

_here: list[Callable[[], object]] = []


def queue_of(release: "Release") -> str:
    return f"{settings.REDIS_PREFIX}.model.{release.model.slug}.{release.version}"


def queues_of(release: "Release") -> list[str]:
    """What a worker of this release takes messages from."""
    return [queue_of(release), f"{settings.REDIS_PREFIX}.chores"]


def run_waits(release: "Release") -> None:
    """Never raises and hardly waits."""
    if not settings.REDIS_URL:
        doorbell.ring("work")
    elif not redis_server.server().is_away:
        from celery import current_app  # a site without Redis never loads it
        from kombu.exceptions import KombuError

        with contextlib.suppress(KombuError, RedisError, OSError):
            current_app.send_task(
                "inference.tasks.wake",
                queue=queue_of(release),
                expires=EXPIRES_SECONDS,
                retry=False,
                ignore_result=True,
            )


@contextlib.contextmanager
def answered_by(ring: Callable[[], object]) -> Iterator[None]:
    """While this lasts, `ring` (from any thread) is called when a message comes here."""
    _here.append(ring)
    try:
        yield
    finally:
        _here.remove(ring)


def wake_here() -> None:
    for ring in tuple(_here):
        ring()
