"""The process that pulls and verifies model files: staff ask for it, nobody's request waits for it.

A worker starts it when there is something to do (`file_watch.py`), so that a large file, or one
made to break what reads it, is no load on the worker's own process. It may be killed at any time:
its lease runs out, and the next one goes on where a download was.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from django.db import DatabaseError, connection

from inference.catalogue import CATALOGUE
from inference.engines.base import EngineError
from inference.file_jobs import LEASE, FileJob, NotOurs
from inference.model_files import of_release, verify
from inference.pulls import Pull, pull_known
from inference.releases import Release, ReleaseError
from inference.sources import ModelFileError

log = logging.getLogger(__name__)
TELL_SECONDS = 0.5


def do_all() -> None:
    """Every job that is due, one after the other."""
    while job := FileJob.objects.claim():
        do(job)


def do(job: FileJob) -> None:
    """Do it and note what came of it."""
    log.info("%s, asked for by %s.", job, job.by)
    try:
        with _kept(job):
            release, outcome = _done(job)
    except NotOurs:
        job.end(job.State.CANCELLED)
    except (ModelFileError, EngineError, ReleaseError) as error:
        job.end(job.State.FAILED, str(error))
    except BaseException:
        job.give_back()
        raise
    else:
        job.end(job.State.DONE, outcome, release)
    log.info("%s: %s. %s", job, job.state, job.outcome)


def _done(job: FileJob) -> tuple[Release, str]:
    if job.kind == job.Kind.PULL:
        release = _pull(job)
        return release, f"Release {release.name} is recorded ({release.state})."
    if job.release is None:
        raise ReleaseError("The release is gone.")
    return job.release, _verify(job, job.release)


def _pull(job: FileJob) -> Release:
    bars = Progress(job, "Downloading"), Progress(job, "Unpacking")
    by = job.user or job.by
    if job.source in CATALOGUE:
        return pull_known(CATALOGUE[job.source], *bars, by=by)
    order = Pull.of(
        job.source, name=job.name, title=job.title or None, sha256=job.sha256,
        context=job.context_tokens, is_public=True,
    )  # fmt: skip
    return order.run(*bars, by=by)


def _verify(job: FileJob, release: Release) -> str:
    try:
        verify(of_release(release), Progress(job, "Comparing"))
    except ModelFileError as error:
        job.note(str(error))
        raise
    job.note("The file is right.")
    return "The file is right."


class Progress:
    """Told of every block, it tells the database twice a second."""

    def __init__(self, job: FileJob, step: str) -> None:
        self.job, self.step, self.told_at = job, step, 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == total or time.monotonic() > self.told_at + TELL_SECONDS:
            self.job.renew(step=self.step, done_bytes=done, total_bytes=total)
            self.told_at = time.monotonic()


@contextlib.contextmanager
def _kept(job: FileJob) -> Iterator[None]:
    """Keep the lease meanwhile: a trial load tells nothing of its progress for minutes."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(LEASE.total_seconds() / 3):
            with contextlib.suppress(DatabaseError, NotOurs):
                job.renew()
        connection.close()

    threading.Thread(target=keep, daemon=True).start()
    try:
        yield
    finally:
        over.set()
