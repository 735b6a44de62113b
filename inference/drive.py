"""One claimed generation on its way through the engine into its log."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError

from inference import failpoints
from inference.context import Fitted, fit
from inference.database import in_database
from inference.engines.base import (
    Delta,
    Engine,
    EngineError,
    Interrupted,
    Request,
    Usage,
)
from inference.models import Generation
from inference.summary import fit_summarised
from inference.tokenlog import Fenced, Tail, pack

log = logging.getLogger(__name__)

FLUSH_SECONDS, LONGEST_FLUSH_SECONDS = 0.025, 0.1
FEW_ANSWERS = 32  # of one process; many more would flush more often than it can
FLUSH_TOKENS = 64
SURE_SECONDS = 8.0  # after the lease was asked for, of its ten: nobody else can have it
LEASE_POLL_SECONDS = 0.05
END_RETRY_SECONDS = 0.25


def flush_seconds(answers: int) -> float:
    """How long tokens of an answer come together in a process that gives so many at once."""
    return min(LONGEST_FLUSH_SECONDS, FLUSH_SECONDS * max(1, answers / FEW_ANSWERS))


@dataclass(slots=True)
class Buffer:
    """What the engine produced since the last flush."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    last: Delta | None = None
    error: Exception | None = None
    restarts: bool = False  # what was logged before is void

    def add(self, delta: Delta) -> None:
        if delta.restart:
            self.text, self.restarts = "", True
            self.token_ids.clear()
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        self.last = delta if delta.finish else None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.token_ids)

    @property
    def ended(self) -> bool:
        return self.last is not None or self.error is not None


class Drive:
    """Runs one claim of one generation, from adopting its log to its terminal event.

    Whatever else happens, the log's fence decides: a write that is refused ends the drive.
    `leased_at`: when the lease was asked for, on this process's monotonic clock;
    `save_soon`: called when the log should not wait for the next round of saving;
    `ends`: of this process, how many may be written at once;
    `answers`: of this process, how many it gives just now.
    """

    def __init__(
        self, engine: Engine, run: Generation, leased_at: float | None = None,
        save_soon: Callable[[], None] = lambda: None, ends: asyncio.Semaphore | None = None,
        answers: Callable[[], int] = lambda: 1,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._generation = run
        self.fence = run.fence
        self.log = run.log
        self._leased_at = time.monotonic() if leased_at is None else leased_at
        self._save_soon = save_soon
        self._ends = ends or asyncio.Semaphore()
        self._answers = answers
        self._tail = Tail(0, 0, "", ())
        self._usage = Usage(prompt=run.prompt.tokens)  # until the engine has read it again
        self._buffer = Buffer()
        self._news = asyncio.Event()  # something is in the buffer, or somebody wants an end
        self._hurry = asyncio.Event()  # that, or so much that it must not wait for more
        self._read: tuple[int, str] | None = None  # of the prompt; not stored yet
        self._cancelled = run.cancelled_at is not None
        self._handing_over = False

    @property
    def is_alone(self) -> bool:
        """Tried in vain before, and without a new token yet: nothing may run beside it."""
        run = self._generation
        in_vain = run.fruitless_attempts + run.shared_attempts
        return in_vain > run.UNSUSPECTED_ATTEMPTS and self._tail.seq <= run.log_seq

    # --- from the runner ------------------------------------------------------------------
    def hand_over(self) -> None:
        """Log what there is and give the run back for another worker to go on with."""
        self._handing_over = True
        self._wake()

    def renewed(self, asked_at: float) -> None:
        self._leased_at = asked_at

    def stop(self) -> None:
        """Somebody asked for it, and that is in the database."""
        self._cancelled = True
        self._wake()

    def abandon(self) -> None:
        """The lease is lost: another worker has the run."""
        self._buffer.error = Fenced()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._hurry.set()

    async def run(self) -> None:
        with contextlib.suppress(Fenced):
            failpoints.hit("claimed")
            self._tail = await self._adopt()
            if self._tail.finish:
                await self._end_of_whole()
            elif self._cancelled:
                await self._finish("stopped", "stopped")
            else:
                await self._stream()

    async def _end_of_whole(self) -> None:
        """Its writer went before the end was written, perhaps before the prompt's count was."""
        if not self._generation.prompt.sha256:
            self._usage = Usage(await self._count_prompt())
        await self._finish("done", self._tail.finish)

    async def _count_prompt(self) -> int:
        try:
            request = await self._request()
            return await self._engine.count_tokens(request.turns)
        except DatabaseError:
            raise
        except Exception:
            log.exception("The prompt of generation %s was not counted.", self._generation.pk)
            return 0

    async def _adopt(self) -> Tail:
        run = self._generation
        if run.log_seq == 0 and not self.log.is_live:
            return self.log.begin(run)  # asks the database nothing
        return await in_database(self.log.begin, run)

    # --- the prompt -----------------------------------------------------------------------
    async def _request(self) -> Request:
        prompt = self._generation.prompt
        room = prompt.sampling.max_tokens
        inherited = self._generation.inherited_tokens
        scope = f"{self._generation.user_id}:{self._generation.purpose}"
        fitted = await fit(self._engine, prompt.turns, room, inherited, prompt.summary)
        if fitted.left_out and self._may_summarise:
            turns = prompt.turns
            fitted = await fit_summarised(self._engine, turns, room, inherited, scope) or fitted
        await self._keep(fitted)
        return prompt.request(
            fitted,
            emitted=self._tail.token_ids,
            text=self._tail.text,
            scope=scope,
        )

    @property
    def _may_summarise(self) -> bool:
        """Not once the answer is begun, whose prompt must stay; a suspect takes no chances."""
        prompt = self._generation.prompt
        is_decided = prompt.summary or prompt.sha256 or self._tail.finish or self.is_alone
        return settings.SUMMARISE_LEFT_OUT and not is_decided

    async def _keep(self, fitted: Fitted) -> None:
        """Store how the prompt was fitted: who takes over must arrive at the same one."""
        run, prompt = self._generation, self._generation.prompt
        found = {name: getattr(fitted, name) for name in ("left_out", "cut_characters", "summary")}
        if all(getattr(prompt, name) == value for name, value in found.items()):
            return
        figures = {
            "summary_prompt_tokens": run.summary_prompt_tokens + fitted.spent.prompt,
            "summary_tokens": run.summary_tokens + fitted.spent.completion,
        }
        failpoints.hit("before_fitted")
        await in_database(self.log.prepare, self.fence, found, **figures)
        failpoints.hit("fitted")

    # --- the answer -----------------------------------------------------------------------
    async def _stream(self) -> None:
        pump = asyncio.create_task(self._pump())
        try:
            await self._flush_until_ended()
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self) -> None:
        try:
            request = await self._request()
            async with contextlib.aclosing(self._engine.generate(request)) as stream:
                async for delta in stream:
                    if delta.prompt_sha256:
                        self._begun(delta)
                        continue
                    self._usage = delta.usage or self._usage
                    self._buffer.add(delta)
                    self._news.set()
                    if delta.finish or len(self._buffer.token_ids) >= FLUSH_TOKENS:
                        self._hurry.set()
        except (EngineError, Fenced, DatabaseError) as error:
            self._buffer.error = error
        except Exception:
            # A fault of the engine's, not of the log's: trying again would meet it again.
            log.exception("The engine failed on generation %s.", self._generation.pk)
            self._buffer.error = EngineError("The model met an unexpected error.")
        finally:
            self._wake()

    def _begun(self, delta: Delta) -> None:
        """The engine has read the prompt; what it read must not change under an answer."""
        self._usage = delta.usage or Usage()
        before = self._generation.prompt.sha256
        if before and before != delta.prompt_sha256:
            raise EngineError("The prompt is not the one this answer was begun with.")
        self._read = (self._usage.prompt, delta.prompt_sha256)
        failpoints.hit("prefill")

    async def _flush_until_ended(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            self._hurry.clear()
            buffer, self._buffer = self._buffer, Buffer()
            if isinstance(buffer.error, Fenced | DatabaseError):
                raise buffer.error
            if not self._cancelled:
                await self._flush(buffer)
            if await self._ended(buffer):
                return
            await self._gather_more()

    async def _gather_more(self) -> None:
        """Let tokens come together for one flush, unless there is a reason not to wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_seconds(self._answers())):
                await self._hurry.wait()

    async def _flush(self, buffer: Buffer) -> None:
        if buffer.restarts:
            self._tail = await in_database(self.log.restart, self.fence)
            self._generation.inherited_tokens = 0
        finish = self._told_finish(buffer)
        if buffer.is_empty and not finish:
            return
        await self._be_sure_of_the_lease()
        tail, ids = self._tail, tuple(buffer.token_ids)
        read, self._read = self._read, None
        append = self.log.aappend
        asked_to_stop = await append(self.fence, tail.seq + 1, buffer.text, ids, read, finish)
        self._tail = Tail(tail.epoch, tail.seq + 1, tail.text + buffer.text, tail.token_ids + ids)
        self._cancelled = self._cancelled or asked_to_stop
        if self.log.wants_saving():
            self._save_soon()

    def _told_finish(self, buffer: Buffer) -> str:
        """Readers are told that the text is whole before its end is written, which many at once
        wait for; where the database is the log, only with text: the end comes as soon."""
        if not buffer.last or buffer.error or not (self._tail.seq or buffer.text):
            return ""
        return buffer.last.finish or "" if self.log.is_live or buffer.text else ""

    async def _be_sure_of_the_lease(self) -> None:
        """Redis knows nothing of leases: write there only while nobody else can have claimed."""
        while self.log.is_live and time.monotonic() - self._leased_at > SURE_SECONDS:
            if isinstance(self._buffer.error, Fenced):
                raise self._buffer.error
            await asyncio.sleep(LEASE_POLL_SECONDS)

    async def _ended(self, buffer: Buffer) -> bool:
        """End the run if it is time to; the first of two racing reasons wins."""
        if self._cancelled:
            await self._finish("stopped", "stopped")
        elif isinstance(buffer.error, EngineError):
            await self._fail(buffer.error)
        elif buffer.last:
            await self._finish("done", buffer.last.finish or "end")
        elif self._handing_over:
            await in_database(self.log.release, self.fence)
            await in_database(Generation.objects.give_back, self._generation.pk, self.fence)
        else:
            return False
        return True

    async def _fail(self, error: EngineError) -> None:
        kind = "interrupted" if isinstance(error, Interrupted) else "failed"
        await self._finish(kind, kind, str(error))

    async def _finish(self, kind: str, reason: str, error: str = "") -> None:
        run, tail = self._generation, self._tail
        made = len(tail.token_ids) or self._usage.completion or tail.tokens
        result: dict[str, Any] = {
            "text": tail.text,
            "token_ids": pack(tail.token_ids),
            "finish_reason": reason,
            "error": error[:300],
            "prompt_tokens": self._usage.prompt,
            "cached_tokens": self._usage.cached,
            "completion_tokens": max(0, made - run.inherited_tokens),
        }
        await self._end_patiently(kind, result)

    async def _end_patiently(self, kind: str, result: dict[str, Any]) -> None:
        """A live log outlives a database that is away for a moment; so does its end."""
        while True:
            try:
                end = self.log.finish
                async with self._ends:
                    return await in_database(end, self.fence, self._tail.seq + 1, kind, **result)
            except (OperationalError, InterfaceError):
                if not self.log.is_live or time.monotonic() - self._leased_at > SURE_SECONDS:
                    raise
            await asyncio.sleep(END_RETRY_SECONDS)
