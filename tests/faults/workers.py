"""Real worker processes for fault tests, and a reader that checks the invariants as it reads."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from uuid import UUID

from accounts.models import User
from bench.checker import check_run
from bench.forks import Forks
from inference.models import Generation, Release, Worker
from inference.tokenlog import DatabaseLog

POLL = 0.005
SMALL = {"WORKER_THREADS": "1", "WORKER_SLOTS": "8", "CONTEXT_TOKENS": "4096"}
SMALL_REAL = {"WORKER_THREADS": "1", "WORKER_SLOTS": "4", "CONTEXT_TOKENS": "512"}

ALL = os.environ.get("FAULTS") == "all"  # `make faults`; a quarter of the kills otherwise


def of_all(kills: int) -> int:
    return kills if ALL else kills // 4


class WorkerProcess:
    def __init__(self, pid: int, boot_id: UUID) -> None:
        self.pid = pid
        self.boot_id = boot_id

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait_until_dead(self, seconds: float = 30) -> None:
        wait_for(lambda: not self.is_alive, seconds, f"worker {self.pid} to end")

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait_until_dead()
        self.bury()

    def bury(self) -> None:
        """What the supervisor does for a worker it saw die."""
        Worker.objects.filter(pk=self.boot_id).update(state="gone")
        Generation.objects.void_leases(self.boot_id)

    def wait_until_ready(self) -> "WorkerProcess":
        def ready() -> bool:
            return Worker.objects.filter(pk=self.boot_id, state="ready").exists()

        wait_for(ready, 60, f"worker {self.pid} to be ready")
        return self


class Workers:
    """Starts workers by name of the model, and ends them all with the test."""

    def __init__(self, environment: dict[str, str], release: Release) -> None:
        self._release = release
        self._started: list[WorkerProcess] = []
        small = SMALL if release.engine == "simulated" else SMALL_REAL
        self._forks = Forks({**environment, "MODEL": release.model.slug, **small})

    def start(self, failpoint: str = "") -> WorkerProcess:
        worker = WorkerProcess(*self._forks.start(str(self._release.pk), failpoint))
        self._started.append(worker)
        return worker

    def close(self) -> None:
        for worker in self._started:
            worker.send(signal.SIGKILL)
        for worker in self._started:
            worker.wait_until_dead()
        self._forks.close()


class Recorder:
    """A reader of one generation's log: checks every event against what it has seen."""

    def __init__(self, run: Generation) -> None:
        self.run = run
        self.text = ""
        self.epoch = 0
        self.seq = 0
        self.kind = ""
        self.taken_back: list[str] = []  # what was shown of an epoch that is over

    def look(self) -> None:
        for event in self._log.read(self.epoch, self.seq):
            assert not self.kind, "an event after the terminal one"
            if event.epoch != self.epoch:
                assert event.epoch > self.epoch, "back in an epoch that is over"
                self.taken_back.append(self.text)
                self.epoch, self.seq, self.text = event.epoch, 0, ""
            assert event.seq == self.seq + 1, "a hole or a repetition"
            assert event.offset == len(self.text), "text lost or repeated"
            self.seq, self.text = event.seq, self.text + event.text
            self.kind = event.kind if event.is_terminal else ""

    @property
    def _log(self) -> DatabaseLog:
        """As a page does it: the live log, and the database's once the run has ended."""
        run = Generation.objects.get(pk=self.run.pk)
        return run.log if run.is_active else DatabaseLog(run.pk)

    def read_until(self, characters: int, seconds: float = 60) -> None:
        """Go on reading until this much text has been shown, or the run has ended."""

        def enough() -> bool:
            self.look()
            return bool(self.kind) or len(self.text) >= characters

        wait_for(enough, seconds, f"{characters} characters of {self.run.pk}")

    def read_to_the_end(self, seconds: float = 60) -> str:
        self.read_until(10**9, seconds)
        self.check_the_end()
        return self.text

    def result(self, seconds: float = 60) -> tuple[str, bytes]:
        """The final text and the ids of its tokens."""
        return self.read_to_the_end(seconds), bytes(
            Generation.objects.get(pk=self.run.pk).token_ids
        )

    def check_the_end(self) -> None:
        """Database text = displayed text = log text; usage = tokens logged."""
        run = Generation.objects.get(pk=self.run.pk)
        check_run(run)
        assert (run.text, run.status, run.log_seq) == (self.text, self.kind, self.seq)


def ask(user: User, release: Release, text: str, **parameters: object) -> Recorder:
    return Recorder(
        Generation.objects.enqueue(
            user=user,
            release=release,
            messages=[{"role": "user", "content": text}],
            parameters={"seed": 1, "max_tokens": 3000, **parameters},
        )
    )


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(POLL)
