"""What Celery calls: each is one line that calls a method. All of it may be lost."""

import logging

from celery import shared_task
from django.db import Error

from inference import wakeups
from inference.database import log_failure
from inference.models import Generation

log = logging.getLogger(__name__)


@shared_task(name="inference.tasks.wake")  # type: ignore[untyped-decorator]
def wake() -> None:
    """A run waits for the release of the worker that takes this message."""
    wakeups.wake_here()


@shared_task(name="inference.tasks.look_after_runs")  # type: ignore[untyped-decorator]
def look_after_runs() -> None:
    """What each worker does too: this is for runs that no worker is there for."""
    try:
        Generation.objects.fail_exhausted()
        Generation.objects.stop_disabled()
        Generation.objects.expire_logs()
    except Error:
        log_failure(log, "Runs could not be looked after; the next message does it.")
