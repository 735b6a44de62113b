"""Processes the supervisor keeps running: the web server, and a worker for each wanted release."""

import contextlib
import logging
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from django.db import Error as DatabaseError
from django.db import connection

from inference.management.commands.worker import EXIT_UNUSABLE
from inference.models import Release, Worker

log = logging.getLogger(__name__)

Process = subprocess.Popen[bytes]
RESTART_PAUSE = 1.0  # before another start of something that did not live ten seconds
UNUSABLE_PAUSE = 30.0  # before another try of a release that could not be loaded
LOOK_SECONDS = 1.0


@dataclass(slots=True)
class Child:
    """A process to keep running. `died` is told the exit code before a new start."""

    start: Callable[[], Process]
    died: Callable[[int], None] = lambda code: None
    process: Process | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    name: str = "A process"

    def ensure(self) -> None:
        """Start it if it is not running (after a pause, if it died young)."""
        self.look()
        self.start_if_due()

    def start_if_due(self) -> None:
        if self.process is None and time.monotonic() >= self.restart_at:
            self.started_at = time.monotonic()
            self.process = self.start()

    def look(self) -> None:
        """Notice its end."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self.process = None
            if code:
                log.warning("%s ended with %d.", self.name, code)
            young = time.monotonic() - self.started_at < 10
            self.restart_at = time.monotonic() + (RESTART_PAUSE if young else 0)
            self.died(code)


@dataclass(slots=True)
class Crew:
    """A worker for every release that is wanted; one that is not wanted any more ends by itself.

    So a promotion has two running for a while: the old one finishes its answers.
    """

    spawn: Callable[[list[str], dict[str, str]], Process]
    members: dict[int, Child] = field(default_factory=dict)
    boot_ids: dict[int, UUID] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    looked_at: float = float("-inf")
    ever_ready: bool = False
    is_hopeless: bool = False

    def ensure(self) -> None:
        if time.monotonic() > self.looked_at + LOOK_SECONDS:
            self._see_what_is_wanted()
        for member in self.members.values():
            member.look()  # one that has ended may not be wanted any more: that is seen here
        for pk in self.names:
            self._member(pk).start_if_due()

    def is_ready(self) -> bool:
        """Whether any of them takes runs."""
        ready = Worker.objects.filter(pk__in=self.boot_ids.values(), state=Worker.State.READY)
        return ready.exists()

    @property
    def processes(self) -> list[Process]:
        return [member.process for member in self.members.values() if member.process]

    def _see_what_is_wanted(self) -> None:
        """With the database away, what was wanted last still is."""
        self.looked_at = time.monotonic()
        with contextlib.suppress(DatabaseError):
            wanted = Release.objects.wanted().select_related("model")
            self.names = {release.pk: release.name for release in wanted}
        connection.close()

    def _member(self, pk: int) -> Child:
        if pk not in self.members:
            self.members[pk] = Child(
                lambda: self._start(pk),
                lambda code: self._died(pk, code),
                name=f"The worker of {self.names[pk]}",
            )
        return self.members[pk]

    def _start(self, pk: int) -> Process:
        self.boot_ids[pk] = uuid4()
        words = ["worker", "--release", self.names[pk]]
        return self.spawn(words, {"CHATSITE_BOOT_ID": str(self.boot_ids[pk])})

    def _died(self, pk: int, code: int) -> None:
        self.ever_ready = bury(self.boot_ids[pk]) or self.ever_ready
        self._see_what_is_wanted()  # it may have seen to it that another release is
        if code == EXIT_UNUSABLE and pk in self.names:
            self.members[pk].restart_at = time.monotonic() + UNUSABLE_PAUSE
            self.is_hopeless = not self.ever_ready and not self.processes


def bury(boot_id: UUID) -> bool:
    """Free what a dead worker held, and tell whether it had ever been ready.

    With the database away, its leases just run out.
    """
    try:
        worker = Worker.objects.filter(boot_id=boot_id).exclude(state=Worker.State.LOADING)
        was_ready = worker.exists()
        Worker.objects.bury(boot_id)
    except DatabaseError:
        log.exception("The dead worker's answers could not be freed at once.")
        return False
    finally:
        connection.close()
    return was_ready
