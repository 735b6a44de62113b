"""Whose turn it is: start-time fair queueing over the people who wait for one release.

Each run is given a turn when it is queued: the turn that is being served now, or, for somebody
who has others waiting, one step after the last of these. A step is one over the weight of the
person's tier. So a person's thousand runs take a thousand turns, and another person's first
comes after at most one of them. Nothing is counted at a claim: the order is in an index.
"""

import math
from typing import TYPE_CHECKING

from django.conf import settings
from django.db.models import Max

if TYPE_CHECKING:
    from accounts.models import User
    from inference.models import Release
    from inference.queue import GenerationQuerySet

RECENT_RUNS = 20


class QueueFull(Exception):
    """Nothing was queued. `retry_after`: seconds until a place will be free, as far as is known."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("The queue is full.")
        self.retry_after = retry_after


def turn_of(runs: "GenerationQuerySet", user: "User", release: "Release", priority: int) -> float:
    """For a new run of this person. Two sends at once may get the same: no harm."""
    lane = runs.filter(release=release, priority=priority)
    waiting = lane.filter(status="queued").order_by("turn").values_list("turn", flat=True).first()
    if waiting is None:
        waiting = lane.filter(status="running").aggregate(now=Max("turn"))["now"] or 0.0
    mine = lane.filter(user=user, status__in=runs.model.ACTIVE).aggregate(last=Max("turn"))["last"]
    return float(waiting) if mine is None else max(float(waiting), mine + 1 / user.weight)


def require_room(runs: "GenerationQuerySet", release: "Release") -> None:
    """Raises QueueFull when as many wait for the release as may."""
    waiting = runs.filter(release=release, status="queued")
    if settings.MAX_QUEUED and waiting[: settings.MAX_QUEUED].count() >= settings.MAX_QUEUED:
        raise QueueFull(expected_wait(runs, release, 1) or settings.DEFAULT_RETRY_SECONDS)


def expected_wait(runs: "GenerationQuerySet", release: "Release", position: int) -> int | None:
    """Seconds until so many runs have begun, from how long the last ones took; None: not known."""
    from inference.models import Worker

    slots = Worker.objects.slots_of(release.pk)
    ended = runs.filter(release=release, started_at__isnull=False, finished_at__isnull=False)
    times = ended.order_by("-finished_at").values_list("started_at", "finished_at")
    seconds = [(end - start).total_seconds() for start, end in times[:RECENT_RUNS] if start and end]
    if not seconds or not slots:
        return None
    return max(1, math.ceil(position * (sum(seconds) / len(seconds)) / slots))
