"""A worker process: one engine, one release, its row in the table of workers."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from uuid import UUID

from django.conf import settings
from django.db import Error as DatabaseError
from django.db.models.functions import Now

from inference import collector, doorbell, file_watch, wakeups
from inference.database import in_database
from inference.engines.base import Engine, EngineError
from inference.engines.threads import SWITCH_SECONDS
from inference.models import Release, Worker
from inference.runner import Runner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inference.engines.backends import Backend

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.2
LOOK_SECONDS = 2.0
FOLLOW_SECONDS = 2.0  # until a change of a release's servers is taken up


def build_engine(release: Release) -> Engine:
    """The engine a release names. Raises EngineError for an unknown one."""
    if release.engine == "simulated":
        from inference.engines.simulated import SimulatedEngine

        return SimulatedEngine(
            slots=settings.WORKER_SLOTS,
            context_tokens=release.window,
            tokens_per_second=settings.SIMULATED_TOKENS_PER_SECOND,
            load_seconds=settings.SIMULATED_LOAD_SECONDS,
        )
    if release.engine == "llama_cpp":
        from inference.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(
            Path(settings.MODELS_DIR) / release.weights_file,
            slots=settings.WORKER_SLOTS,
            context_tokens=release.window,
            threads=settings.WORKER_THREADS,
            reproducible=settings.REPRODUCIBLE,
        )
    if release.engine == "wordllama":
        from inference.engines.wordllama import WordLlamaEngine

        return WordLlamaEngine(release.weights_sha256)
    if release.engine == "upstream":
        from inference.engines.upstream import UpstreamEngine

        return UpstreamEngine(
            release.servers(),
            context_tokens=release.context_tokens,
            restarts=release.cannot_continue == release.CannotContinue.RESTART,
        )
    raise EngineError(f"{release} needs the engine {release.engine!r}, which this site lacks.")


@runtime_checkable
class UsesServers(Engine, Protocol):
    """An engine whose servers come and go."""

    def use(self, backends: "Iterable[Backend]") -> None: ...

    def troubles(self) -> dict[str, str]: ...


class WorkerProcess:
    def __init__(
        self, release: Release, boot_id: UUID, lanes: Sequence[str] = tuple(wakeups.LANES)
    ) -> None:
        self._release = release
        self._lanes = lanes
        self._boot_id = boot_id
        self._engine = build_engine(release)
        self._runner = Runner(self._engine, release, boot_id, lanes)
        self._stop = asyncio.Event()
        self._percent = 0

    async def run(self) -> None:
        """Load, run until there is a reason to stop, drain. Raises EngineError.

        The reasons: SIGTERM, the end of the lifeline, and that nothing needs the release any
        more: another one is live and the last of this one's runs has ended.
        """
        await in_database(self._register)
        self._listen_for_the_end()
        files = asyncio.create_task(file_watch.watch())  # what is loaded may wait for it
        seconds = await self._load()
        collector.settle()
        sys.setswitchinterval(SWITCH_SECONDS)
        await self._set(
            state=Worker.State.READY,
            percent_loaded=100,
            slots=self._slots(),
            engine_build=self._engine.fingerprint()[:400],
            load_seconds=round(seconds, 3),
        )
        if self._slots():  # a server that is not there has told nothing yet
            await in_database(self._release.learn, self._engine.fingerprint())
        looking = asyncio.create_task(self._stop_when_unwanted())
        following = asyncio.create_task(self._follow_servers())
        running = asyncio.create_task(self._runner.run())
        stopping = asyncio.create_task(self._stop.wait())
        async with self._taking_messages():
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        looking.cancel()
        files.cancel()
        with contextlib.suppress(DatabaseError):  # it is away; answers go on all the same
            await self._set(state=Worker.State.DRAINING)
        await self._runner.drain(settings.DRAIN_SECONDS)
        await running
        following.cancel()
        with contextlib.suppress(DatabaseError):
            await self._set(state=Worker.State.GONE)
        await self._engine.stop()

    @contextlib.asynccontextmanager
    async def _taking_messages(self) -> AsyncIterator[None]:
        """From Celery, where there is Redis: each makes the runner look at the queue."""
        if not settings.REDIS_URL:
            yield
            return
        from inference.consumer import Consumer

        loop = asyncio.get_running_loop()
        queues = await in_database(wakeups.queues_of, self._release, self._lanes)
        consumer = Consumer(queues)
        with wakeups.answered_by(lambda: loop.call_soon_threadsafe(self._runner.look), queues):
            consumer.start()
            try:
                yield
            finally:
                # Not waited for: it may be in the middle of something, and answers are to be
                # handed over.
                threading.Thread(target=consumer.stop, daemon=True).start()

    def _register(self) -> None:
        Worker.objects.forget_old()
        Worker.objects.bury_predecessors()
        Worker.objects.create(
            boot_id=self._boot_id, node=Worker.this_node(), pid=os.getpid(), release=self._release
        )

    async def _stop_when_unwanted(self) -> None:
        wanted = Release.objects.wanted
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with contextlib.suppress(DatabaseError):
                # A run that is queued just now is not lost: it makes the release wanted again.
                if not await in_database(lambda: wanted().filter(pk=self._release.pk).exists()):
                    log.info("Nothing needs this release any more; its worker ends.")
                    self._stop.set()

    async def _load(self) -> float:
        """Seconds it took, without the trial load of a file that is new here."""
        reporter = asyncio.create_task(self._report_progress())
        try:
            await asyncio.to_thread(self._release.examine)
            started = time.monotonic()
            await self._engine.start(self._progress)
            return time.monotonic() - started
        finally:
            reporter.cancel()

    def _progress(self, percent: int) -> None:
        self._percent = percent  # from any thread; the reporter looks at it

    async def _report_progress(self) -> None:
        while True:
            await self._set(percent_loaded=self._percent)
            await asyncio.sleep(PROGRESS_SECONDS)

    async def _follow_servers(self) -> None:
        """Take up what staff change about the servers, and tell how they are doing."""
        told: object = None
        while isinstance(self._engine, UsesServers):
            with contextlib.suppress(DatabaseError):  # looked at again in a moment
                self._engine.use(await in_database(self._release.servers))
                now = (self._slots(), self._engine.fingerprint(), self._engine.troubles())
                if now != told:
                    await self._tell_servers(*now)
                    told = now
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _tell_servers(self, slots: int, build: str, troubles: dict[str, str]) -> None:
        await self._set(slots=slots, engine_build=build[:400])
        if slots:
            await in_database(self._release.learn, build)
        for server in await in_database(lambda: list(self._release.backends.all())):
            trouble = troubles.get(server.name, "")[:300]
            if trouble != server.trouble:
                server.trouble = trouble
                await in_database(server.save, update_fields=["trouble"])
                log.log(*_spoken(server.name, trouble))

    def _slots(self) -> int:
        return self._engine.capacity().slots

    async def _set(self, **values: object) -> None:
        mine = Worker.objects.filter(pk=self._boot_id)
        await in_database(mine.update, seen_at=Now(), **values)
        await in_database(doorbell.ring, "worker")

    def _listen_for_the_end(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        if lifeline := os.environ.get("CHATSITE_LIFELINE"):
            # The supervisor holds the other end: end of file means that it is gone.
            loop.add_reader(int(lifeline), self._lifeline_ended, int(lifeline))

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            os._exit(1)  # asked twice: leave at once; the log makes that safe
        if self._runner.is_busy:
            log.info("Draining: answers under way go on for up to %s s.", settings.DRAIN_SECONDS)
        self._stop.set()

    def _lifeline_ended(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)
        if not self._stop.is_set():
            self._stop.set()


def _spoken(server: str, trouble: str) -> tuple[int, str]:
    if trouble:
        return logging.WARNING, f"The server {server} is not used: {trouble}"
    return logging.INFO, f"The server {server} is used."
