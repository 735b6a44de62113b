"""A run waits: wake a worker that has its release. A wake-up may be lost; workers also look.

Without Redis the doorbell wakes every worker there is. With Redis there may be many, so a
message goes through Celery to one of those that run the model.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from django.conf import settings
from redis import RedisError

from inference import doorbell, redis_server

if TYPE_CHECKING:
    from inference.models import Release

EXPIRES_SECONDS = 30.0  # until then a worker that looks by itself has found the run

_here: dict[Callable[[], object], Sequence[str]] = {}  # what to call, and for which queues


# By the priority of what is asked: what somebody waits for, and what can wait (titles).
LANES = {"interactive": (0, 49), "background": (50, 32_767)}


def lane_of(priority: int) -> str:
    return next(lane for lane, (_, last) in LANES.items() if priority <= last)


def queue_of(release: "Release", lane: str) -> str:
    return f"{settings.REDIS_PREFIX}.model.{release.model.slug}.{release.version}.{lane}"


def queues_of(release: "Release", lanes: Iterable[str]) -> list[str]:
    """What a worker of this release takes messages from."""
    return [*(queue_of(release, lane) for lane in lanes), f"{settings.REDIS_PREFIX}.chores"]


def run_waits(release: "Release", priority: int) -> None:
    """Never raises and hardly waits."""
    if not settings.REDIS_URL:
        doorbell.ring("work")
    elif priority >= LANES["background"][0] and _is_served_here(queue_of(release, "background")):
        wake_here()  # others that have nothing to do look by themselves, and it can wait
    elif not redis_server.server().is_away:
        from celery import current_app  # a site without Redis never loads it
        from kombu.exceptions import KombuError

        with contextlib.suppress(KombuError, RedisError, OSError):
            current_app.send_task(
                "inference.tasks.wake",
                queue=queue_of(release, lane_of(priority)),
                expires=EXPIRES_SECONDS,
                retry=False,
                ignore_result=True,
            )


def _is_served_here(queue: str) -> bool:
    return any(queue in queues for queues in _here.values())


@contextlib.contextmanager
def answered_by(ring: Callable[[], object], queues: Sequence[str]) -> Iterator[None]:
    """While this lasts, `ring` (from any thread) is called when a message of these comes here."""
    _here[ring] = queues
    try:
        yield
    finally:
        del _here[ring]


def wake_here() -> None:
    for ring in tuple(_here):
        ring()
