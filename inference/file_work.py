"""The process that pulls and verifies model files: staff ask for it, nobody's request waits for it.

A worker starts it when there is something to do (`file_watch.py`), so that a large file, or one
made to break what reads it, is no load on the worker's own process. It may be killed at any time:
its lease runs out, and the next one goes on where a download was.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from django.db import Error as DatabaseError
from django.db import connection
from django.db.models.functions import Now

from accounts.models import User
from inference.catalogue import CATALOGUE, register
from inference.database import log_failure
from inference.engines.base import EngineError
from inference.file_jobs import FileJob, NotOurs
from inference.model_files import FolderBusyError, of_release, verify
from inference.pulls import Pull, bring_known
from inference.releases import Release, ReleaseError
from inference.sources import ModelFileError

log = logging.getLogger(__name__)
TELL_SECONDS = 0.5
KEEP_SECONDS = 2.0
BUSY_SECONDS = 5.0


def do_all(call_off: Callable[[], None] = lambda: None) -> None:
    """Every job that is due, one after the other.

    call_off: called in a thread when the job at hand is cancelled or somebody else's; it may end
    the process, which waits for a server or a trial load, maybe.
    """
    while _each_once(call_off):
        time.sleep(BUSY_SECONDS)


def _each_once(call_off: Callable[[], None]) -> bool:
    """Whether some are left: they wait for a folder that somebody else fetches into."""
    held_up: set[int] = set()
    while job := FileJob.objects.claim(but=held_up):
        try:
            do(job, call_off)
        except FolderBusyError:
            job.give_back()
            FileJob.objects.filter(pk=job.pk).update(called_at=Now())  # this process sees to it
            held_up.add(job.pk)
    return bool(held_up)


def do(job: FileJob, call_off: Callable[[], None]) -> None:
    """Do it and note what came of it. Raises FolderBusyError."""
    log.info("%s, asked for by %s.", job, job.by)
    try:
        with _kept(job, call_off):
            release, outcome = _carry_out(job)
    except FolderBusyError:
        raise
    except NotOurs:
        job.give_back()
    except (SystemExit, KeyboardInterrupt):
        job.give_back()
        raise
    except DatabaseError:
        raise  # its lease runs out, and it is counted as lost
    except (ModelFileError, EngineError, ReleaseError) as error:
        job.end(job.State.FAILED, str(error))
    except Exception as error:
        log.exception("%s failed.", job)
        job.end(job.State.FAILED, f"{type(error).__name__}; the log has more.")
    else:
        job.end(job.State.DONE, outcome, release)
    log.info("%s: %s. %s", job, job.state, job.outcome)


def _carry_out(job: FileJob) -> tuple[Release, str]:
    if job.kind == job.Kind.PULL:
        release = _pull(job)
        return release, f"Release {release.name} is recorded ({release.state})."
    if job.release is None:
        raise ReleaseError("The release is gone.")
    return job.release, _verify(job, job.release)


def _pull(job: FileJob) -> Release:
    """What staff have pulled goes live only if they may have that, too."""
    bars = Progress(job, "Downloading"), Progress(job, "Unpacking")
    if entry := CATALOGUE.get(job.source):
        bring_known(entry, *bars)
        user = _still_there(job)
        return register(entry, user, is_live=_may_go_live(user))
    order = Pull.of(
        job.source, name=job.name, title=job.title or None, sha256=job.sha256,
        context=job.context_tokens, public_only=True,
    )  # fmt: skip
    sha256 = order.bring(*bars)
    user = _still_there(job)
    return replace(order, is_live=_may_go_live(user)).record(sha256, user)


def _still_there(job: FileJob) -> User:
    """The last chance to call it off: who asked for it, with the rights they have by now."""
    job.renew()
    job.refresh_from_db()
    if not job.may_be_done() or job.user is None:
        raise ReleaseError(f"{job.by} may not have this done any more.")
    return job.user


def _may_go_live(user: User) -> bool:
    return user.has_perm("inference.change_release")


def _verify(job: FileJob, release: Release) -> str:
    try:
        verify(of_release(release), Progress(job, "Comparing"))
    except ModelFileError as error:
        job.note(str(error))
        raise
    job.note("The file is right.")
    return "The file is right."


class Progress:
    """Told of every block, it tells the database twice a second.

    What the database does not take, it is told the next time: the lease is kept beside it.
    """

    def __init__(self, job: FileJob, step: str) -> None:
        self.job, self.step, self.told_at = job, step, 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == total or time.monotonic() > self.told_at + TELL_SECONDS:
            # A whole file is not looked into yet, which takes a while and tells nothing.
            step = "Checking" if done == total else self.step
            with _database_may_be_away():
                self.job.renew(step=step, done_bytes=done, total_bytes=total)
            self.told_at = time.monotonic()


@contextlib.contextmanager
def _kept(job: FileJob, call_off: Callable[[], None]) -> Iterator[None]:
    """Keep the lease meanwhile: a trial load tells nothing of its progress for minutes."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(KEEP_SECONDS):
            try:
                with _database_may_be_away():
                    job.renew()
            except NotOurs:
                call_off()
        connection.close()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def _database_may_be_away() -> Iterator[None]:
    try:
        yield
    except DatabaseError:
        log_failure(log, "The database does not answer; trying again.")
        connection.close()
