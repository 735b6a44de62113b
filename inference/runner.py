"""The loop of a worker: claims generations, drives them through the engine into their logs."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable
from functools import partial
from uuid import UUID

from django.conf import settings
from django.db import Error as DatabaseError

from inference import doorbell, wakeups
from inference.database import in_database, log_failure
from inference.drive import SURE_SECONDS, Drive
from inference.engines.base import Engine
from inference.live_log import LiveLog
from inference.models import Generation, Release, Worker
from inference.saving import save

log = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0  # longest wait of a queued run whose wake-up was lost
RENEW_SECONDS = 2.5  # a quarter of the lease
SAVE_SECONDS = 1.0
STOP_POLL_SECONDS = 1.0
STOP_LOOK_SECONDS = 0.05  # out of the way of the first token
EXPIRE_SECONDS = 60.0
CHORES_SECONDS = 10.0  # where Celery's beat sees to the same more often
MOST_LATE = 2  # renewals
MOST_PAUSE = 12  # renewals, for what is late again and again: half a minute without a claim
ENDS_AT_ONCE = 2  # many together would take the processor from the streams that go on
WATCH_SECONDS = 1.0
EXIT_WEDGED = 70


class Runner:
    """`boot_id` names this process in the leases it holds; `lanes`: what it claims."""

    def __init__(
        self, engine: Engine, release: Release, boot_id: UUID,
        lanes: Iterable[str] = tuple(wakeups.LANES),
    ) -> None:  # fmt: skip
        self._lanes = tuple(lanes)
        self._engine = engine
        self._release = release
        self._boot_id = boot_id
        self._drives: dict[UUID, Drive] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._late = 0  # how often the database answered too late lately
        self._claimed_late = False  # the last time
        self._expired_at = self._did_chores_at = 0.0
        self._bell: doorbell.Bell | None = None
        self._save_soon = doorbell.Bell()
        self._stop_bell = doorbell.Bell()
        self._ends = asyncio.Semaphore(ENDS_AT_ONCE)

    @property
    def is_busy(self) -> bool:
        return bool(self._drives)

    async def run(self) -> None:
        """Claim and drive until `drain` is called."""
        chores = self._start_chores()
        try:
            async with doorbell.subscribe("work") as self._bell:
                while not self._draining:
                    await self._claim()
                    await self._bell.wait(SWEEP_SECONDS)
        finally:
            chores.cancel()

    def look(self) -> None:
        """There may be something to claim."""
        if self._bell:
            self._bell.ring()

    async def drain(self, seconds: float) -> None:
        """Stop claiming; let answers run on for `seconds`, then hand the rest over, uncounted."""
        self._draining = True
        self.look()
        chores = self._start_chores()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for drive in self._drives.values():
            drive.hand_over()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=4)
        chores.cancel()

    async def _claim(self) -> None:
        free, lanes = self._engine.capacity().slots - len(self._drives), self._lanes
        if self._ends.locked():  # others are waiting for their ends: titles come after those
            lanes = tuple(lane for lane in lanes if lane != "background")
        if free <= 0 or not lanes or self._late or any(d.is_alone for d in self._drives.values()):
            return
        try:
            idle, asked_at = not self._drives, time.monotonic()
            claimed = partial(Generation.objects.claim, self._release, self._boot_id)
            runs = await in_database(claimed, free, idle, lanes)
            if runs:
                self._note_claim(time.monotonic() - asked_at)
            if self._late or self._draining:
                await self._give_back({run.pk: run.fence for run in runs})
                return
            for run in runs:
                self._start(run, asked_at)
        except DatabaseError:
            log_failure(log, "The queue could not be read; trying again.")

    def _note_claim(self, took: float) -> None:
        """One late claim waits for quick renewals; a second one says that they tell nothing."""
        is_late = _is_too_late(took)
        if is_late:
            self._late = max(self._late, MOST_PAUSE if self._claimed_late else MOST_LATE)
        self._claimed_late = is_late

    def _start(self, run: Generation, leased_at: float) -> None:
        if earlier := self._drives.get(run.pk):
            earlier.abandon()  # our own lease had run out, and we have just claimed it anew
        save_soon, answers = self._save_soon.ring, self._drives.__len__
        drive = Drive(self._engine, run, leased_at, save_soon, self._ends, answers)
        self._drives[run.pk] = drive
        task = asyncio.create_task(drive.run(), name=f"generation {run.pk}")
        self._tasks.add(task)
        # Of a stop since the claim the bell has rung already, when it was not ours yet.
        asyncio.get_running_loop().call_later(STOP_LOOK_SECONDS, self._stop_bell.ring)
        task.add_done_callback(lambda done: self._ended(drive, run, done))

    def _ended(self, drive: Drive, run: Generation, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._drives.get(run.pk) is drive:
            del self._drives[run.pk]
        try:
            if not task.cancelled():
                task.result()
        except Exception:
            # Its lease runs out and the run is tried again, at most three times alone and in vain.
            log_failure(log, f"Generation {run.pk} broke off.")
        self.look()  # a slot is free

    def _start_chores(self) -> asyncio.Task[None]:
        async def all_of_them() -> None:
            await asyncio.gather(
                self._keep_watch(), self._keep_house(), self._keep_saving(), self._keep_stopping()
            )

        return asyncio.create_task(all_of_them())

    async def _keep_watch(self) -> None:
        """An engine with work that shows nothing for too long is wedged: another process must."""
        awake_since = looked_at = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            before, looked_at = looked_at, time.monotonic()
            if looked_at - before > 3 * WATCH_SECONDS:
                awake_since = looked_at  # we were stopped ourselves, and the engine with us
            self._exit_if_wedged(looked_at - awake_since)

    async def _keep_house(self) -> None:
        while True:
            started = time.monotonic()
            for chore in (self._renew, self._look_after_all, self._expire_logs):
                try:
                    await chore()
                except Exception:
                    # Renewals must go on whatever happens: without them every lease lapses.
                    log_failure(log, "Housekeeping failed; trying again.")
            await asyncio.sleep(RENEW_SECONDS - (time.monotonic() - started))

    async def _renew(self) -> None:
        fences = {pk: drive.fence for pk, drive in self._drives.items()}
        asked_at = time.monotonic()
        held = await in_database(Generation.objects.renew, fences)
        renewed_at = time.monotonic()
        for pk, fence in fences.items():
            if (drive := self._drives.get(pk)) and drive.fence == fence:
                drive.renewed(asked_at) if pk in held else drive.abandon()
        await in_database(Worker.objects.filter(pk=self._boot_id).touch)
        # Of a worker without runs its own row tells: a claim is several round trips, this is one.
        took = renewed_at - asked_at if fences else 4 * (time.monotonic() - renewed_at)
        self._late = (
            min(self._late + 1, MOST_PAUSE) if _is_too_late(took) else max(0, self._late - 1)
        )
        # One answer may be slow; when they stay so, we write nothing and must let others do it.
        if _is_too_late(took) and self._late >= MOST_LATE:
            await self._leave_to_others(fences)

    async def _leave_to_others(self, fences: dict[UUID, int]) -> None:
        """At once, and uncounted: the model is not to blame."""
        for pk, fence in fences.items():
            if (drive := self._drives.get(pk)) and drive.fence == fence:
                drive.abandon()
        await self._give_back(fences)

    async def _give_back(self, fences: dict[UUID, int]) -> None:
        """What cannot be given back now is free when its lease has run out."""
        for pk, fence in fences.items():
            with contextlib.suppress(DatabaseError):
                await in_database(Generation.objects.give_back, pk, fence)

    async def _keep_stopping(self) -> None:
        """Answers that nobody wants any more, in a prompt too, where nothing is appended."""
        async with doorbell.subscribe(f"cancel:{self._boot_id}") as self._stop_bell:
            while True:
                await self._stop_bell.wait(doorbell.patience(STOP_POLL_SECONDS))
                try:
                    await self._stop_unwanted()
                except Exception:
                    # Looked at again in a moment; an append hears of it too.
                    log_failure(log, "It could not be seen who stopped an answer; trying again.")

    async def _stop_unwanted(self) -> None:
        if not self._drives:
            return
        for pk in await in_database(Generation.objects.asked_to_stop, list(self._drives)):
            if drive := self._drives.get(pk):
                drive.stop()

    async def _keep_saving(self) -> None:
        """What the answers have only in Redis and in memory, all of them together."""
        while settings.REDIS_URL:
            await self._save_soon.wait(doorbell.patience(SAVE_SECONDS))
            try:
                await self._save()
            except Exception:
                # Nothing is lost yet: what is not saved stays in memory, and in Redis.
                log_failure(log, "Answers could not be saved; trying again.")
                await asyncio.sleep(SAVE_SECONDS)

    async def _save(self) -> None:
        logs = [(d, d.log) for d in self._drives.values() if isinstance(d.log, LiveLog)]
        rests = [(drive, log, rest) for drive, log in logs if (rest := log.unsaved())]
        held = await in_database(save, [rest for *_, rest in rests]) if rests else set()
        for drive, log, rest in rests:
            if rest.id in held:
                log.saved(rest)
            else:
                drive.abandon()

    async def _look_after_all(self) -> None:
        """Of runs that are nobody's, too."""
        if settings.REDIS_URL and time.monotonic() - self._did_chores_at < CHORES_SECONDS:
            return
        self._did_chores_at = time.monotonic()
        await in_database(Generation.objects.fail_exhausted)
        await in_database(Generation.objects.stop_disabled)

    async def _expire_logs(self) -> None:
        if time.monotonic() - self._expired_at > EXPIRE_SECONDS:
            self._expired_at = time.monotonic()
            with contextlib.suppress(DatabaseError):
                await in_database(Generation.objects.expire_logs)

    def _exit_if_wedged(self, awake: float) -> None:
        """`awake`: seconds for which this process has not been stopped."""
        most = self._engine.most_seconds_without_progress()  # before: a long chunk may just end
        stuck = min(awake, self._engine.seconds_without_progress())
        if stuck > most:
            log.critical("The engine has been stuck for %.0f s; starting anew.", stuck)
            os._exit(EXIT_WEDGED)


def _is_too_late(seconds: float) -> bool:
    """Whether a lease that took so long to get is of no use. (Without Redis none is needed.)"""
    return bool(settings.REDIS_URL) and seconds > SURE_SECONDS
