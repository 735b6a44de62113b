"""Model files are pulled and verified by a process beside a worker; either may be killed."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from accounts.models import User
from bench.site import command_of, descendants
from inference.models import FileJob, Release
from tests.faults.workers import ALL, WorkerProcess, Workers, wait_for

pytestmark = pytest.mark.django_db(transaction=True)
LONG = 20 << 30  # bytes of nothing, which take a while to compare


@pytest.fixture
def large(start_workers: Callable[..., Workers], release: Release, tmp_path: Path) -> Release:
    with (tmp_path / "large.gguf").open("wb") as file:
        file.truncate(LONG)
    return Release.objects.create(
        model=release.model, version=2, engine="llama_cpp", context_tokens=9,
        weights_file="large.gguf", weights_bytes=LONG, weights_sha256="0" * 64,
    )  # fmt: skip


def at_work(worker: WorkerProcess) -> list[int]:
    """The processes of its jobs."""
    return [pid for pid in descendants(worker.pid) if b"models\0work" in command_of(pid)]


def wait_until(job: FileJob, state: str, seconds: float = 60, **also: Any) -> FileJob:
    there = FileJob.objects.filter(pk=job.pk, state=state, **also)
    wait_for(there.exists, seconds, f"the job to be {state}")
    return there.get()


def test_a_worker_has_a_pull_done_that_staff_asked_for(workers, charlie):
    workers.start().wait_until_ready()
    job = wait_until(FileJob.objects.create(source="simulated", user=charlie, by="charlie"), "done")
    assert job.outcome == "Release simulated@1 is recorded (live)."


def test_the_process_of_a_job_ends_with_its_worker_and_the_next_one_goes_on(
    start_workers, release, large, charlie: User, tmp_path
):
    workers = start_workers(release, MODELS_DIR=str(tmp_path))
    first = workers.start().wait_until_ready()
    job = wait_until(FileJob.verify(large, charlie), "running", done_bytes__gt=0)
    [pid] = at_work(first)
    first.kill()
    wait_until(job, "waiting")
    wait_for(lambda: not command_of(pid), 5, "the process to end")
    second = workers.start().wait_until_ready()
    assert wait_until(job, "running", fence=2).by == "charlie"
    wait_for(lambda: bool(at_work(second)), 5, "the next process")
    job.cancel(charlie)
    wait_until(job, "cancelled")


@pytest.mark.skipif(not ALL, reason="takes half a minute: make faults")
def test_a_job_whose_process_was_killed_is_begun_again_when_its_lease_is_over(
    start_workers, release, large, charlie: User, tmp_path
):
    workers = start_workers(release, MODELS_DIR=str(tmp_path))
    worker = workers.start().wait_until_ready()
    job = wait_until(FileJob.verify(large, charlie), "running", done_bytes__gt=0)
    [pid] = at_work(worker)
    os.kill(pid, signal.SIGKILL)
    FileJob.objects.filter(pk=job.pk).update(lease_until=Now() - timedelta(seconds=1))
    job = wait_until(job, "running", fence=2, done_bytes__gt=0)
    job.cancel(charlie)
    wait_until(job, "cancelled")
