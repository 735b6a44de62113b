"""Whose turn it is: start-time fair queueing over the people who wait for one release.

Each run is given a turn when it is queued: the turn that is being served now, or, for somebody
who has others waiting, one step after the last of these. A step is one over the weight of the
person's tier. So a person's thousand runs take a thousand turns, and another person's first
comes after at most one of them. Nothing is counted at a claim: the order is in an index.

Guests of one address are as one person here: anybody can be many guests.
"""

import math
from statistics import mean
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import connection
from django.utils import timezone

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


class TooManyUnderWay(QueueFull):
    """One person's; the queue has room."""


# One statement, because every send waits for it.
TURNS = """
    SELECT
        COALESCE(
            (SELECT turn FROM inference_generation
             WHERE release_id = %s AND status = 'queued' AND priority = %s ORDER BY turn LIMIT 1),
            (SELECT MAX(turn) FROM inference_generation
             WHERE release_id = %s AND status = 'running' AND priority = %s),
            0),
        (SELECT MAX(turn) FROM inference_generation g {of}
             AND status IN ('queued', 'running') AND release_id = %s AND priority = %s)
"""
OF_PERSON = TURNS.format(of="WHERE user_id = %s")
OF_ORIGIN = TURNS.format(of="JOIN accounts_user u ON u.id = g.user_id WHERE u.origin = %s")


def turn_of(user: "User", release: "Release", priority: int) -> float:
    """For a new run of this person. Two sends at once may get the same: no harm."""
    lane = [release.pk, priority]
    with connection.cursor() as cursor:
        if user.origin:
            cursor.execute(OF_ORIGIN, [*lane, *lane, user.origin, *lane])
        else:
            cursor.execute(OF_PERSON, [*lane, *lane, user.pk, *lane])
        now, mine = cursor.fetchone()
    return float(now) if mine is None else max(float(now), mine + 1 / user.weight)


# One statement here too. Titles wait behind everybody, so they are in nobody's way.
UNDER_WAY = """
    SELECT
        (SELECT COUNT(*) FROM
            (SELECT 1 FROM inference_generation
             WHERE release_id = %s AND status = 'queued' AND purpose <> 'title'
             LIMIT %s) AS waiting),
        (SELECT COUNT(*) FROM
            (SELECT 1 FROM inference_generation
             WHERE user_id = %s AND status IN ('queued', 'running') AND purpose <> 'title'
             LIMIT %s) AS own)
"""


def require_room(
    runs: "GenerationQuerySet", release: "Release", user: "User | None" = None
) -> None:
    """Raises QueueFull when as many wait for the release as may, or as many are `user`'s.

    Who has nothing under way may come until twice as many wait: a few who ask for much must not
    close the site to the others. A guest, until half as many more: anybody can be many guests, and
    they must not close it to members.
    """
    most, each = settings.MAX_QUEUED, user.concurrent_runs if user else 0
    with connection.cursor() as cursor:
        pk = user.pk if user else None
        cursor.execute(UNDER_WAY, [release.pk, 2 * most or 1, pk, max(each, 1)])
        waiting, own = cursor.fetchone()
    if each and own >= each:
        raise TooManyUnderWay(_free_in(runs, release))
    is_member = user is not None and not user.is_guest
    if most and waiting >= (most if own else 2 * most if is_member else most * 3 // 2):
        raise QueueFull(_free_in(runs, release))


def _free_in(runs: "GenerationQuerySet", release: "Release") -> int:
    return expected_wait(runs, release, 1) or settings.DEFAULT_RETRY_SECONDS


def expected_wait(runs: "GenerationQuerySet", release: "Release", position: int) -> int | None:
    """Seconds until so many runs have begun, by how long answers take; None: not known.

    By the last ones that ended, or by those that run if these take longer already. Titles are
    short and would make a long answer's end look near. Who has had the usual time may well have
    half as long again.
    """
    from inference.models import Worker

    slots = Worker.objects.slots_of(release.pk)
    answers = runs.filter(release=release, started_at__isnull=False).exclude(purpose="title")
    times = answers.filter(finished_at__isnull=False).order_by("-finished_at")
    ended = times.values_list("started_at", "finished_at")[:RECENT_RUNS]
    seconds = [(end - start).total_seconds() for start, end in ended if start and end]
    if not seconds or not slots:
        return None
    now = timezone.now()
    begun = answers.filter(status="running").values_list("started_at", flat=True)
    so_far = [(now - start).total_seconds() for start in begun if start]
    usual = max(mean(seconds), mean(so_far) if so_far else 0)
    left = sorted(max(usual - lasts, lasts / 2) for lasts in so_far)[:slots]
    rounds, place = divmod(position - 1, slots)
    until_free = [*[0.0] * (slots - len(left)), *left][place]
    return max(1, math.ceil(rounds * usual + until_free))
