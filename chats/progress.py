"""How far a run that has not ended is: waiting, loading, running, or changing hands."""

from dataclasses import dataclass
from typing import Any

from django.db.models import BooleanField, ExpressionWrapper, Q
from django.db.models.functions import Now

from inference.fairness import expected_wait
from inference.models import Generation, Worker


@dataclass(frozen=True, slots=True)
class Progress:
    """`status` is queued, loading, running or resuming; `wait` is in seconds, a rough guess.

    away: it waits for the model's server, which the worker cannot reach.
    """

    status: str
    position: int | None = None
    percent: int | None = None
    wait: int | None = None
    away: bool = False

    def frame(self) -> dict[str, Any]:
        if self.away:
            return {"status": "queued", "away": True}
        if self.status == "queued":
            return {"status": "queued", "position": self.position, "wait": self.wait}
        if self.status == "loading":
            return {"status": "loading", "percent": self.percent or 0}
        return {"status": self.status}


def progress(run: Generation) -> Progress:
    """Of a queued or running run; a run from `with_lapse()` can also be resuming."""
    if run.status == Generation.Status.RUNNING:
        return Progress("resuming" if getattr(run, "has_lapsed", False) else "running")
    workers = list(
        Worker.objects.living()
        .filter(release=run.release_id)
        .values_list("state", "percent_loaded", "slots")
    )
    ready = [slots for state, _, slots in workers if state == Worker.State.READY]
    slots = sum(ready)
    if ready and not slots:
        return Progress("queued", away=True)
    if not slots:
        return Progress("loading", percent=max((row[1] for row in workers), default=None))
    position = Generation.objects.position_of(run)
    wait = expected_wait(Generation.objects.all(), run.release, position)
    return Progress("queued", position=position, wait=roughly(wait))


def roughly(seconds: int | None) -> int | None:
    """So that it does not pretend to know better, nor change all the time."""
    if seconds is None or seconds <= 10:
        return seconds
    step = 5 if seconds <= 60 else 30
    return -(-seconds // step) * step


def with_lapse() -> Any:
    """Generations with `has_lapsed`: whether the worker's lease ran out (it died)."""
    lapsed = Q(status=Generation.Status.RUNNING, lease_until__lt=Now())
    return Generation.objects.defer("text", "token_ids").annotate(
        has_lapsed=ExpressionWrapper(lapsed, output_field=BooleanField())
    )
