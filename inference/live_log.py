"""The log with its newest part in Redis: what a cluster's workers write and its readers read.

Events go to Redis as they come (one script: fence, sequence, wake-up, and whether to stop), and
from the worker's memory to the database every second. A key's head says whose it is:

- fence, epoch: of the writer; a script refuses a lower fence
- base: the seq up to which the database has everything; the events after it are in the stream
- seq: the last event; run: the server's start under which it was made; stop: somebody wants it

A log that is missing, or is not what its writer left, is made anew: out of the writer's memory as
long as it lives, else out of the database, in another epoch, because readers may have seen more.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import DatabaseError, transaction
from django.db.models import F
from django.db.models.functions import Now

from inference import failpoints, redis_server
from inference.batch import run_script
from inference.database import in_live_log
from inference.live_scripts import ADOPT, APPEND, CLOSE, READ, SEED, STOP
from inference.redis_server import Away
from inference.saving import Entry, Unsaved, Writer, save
from inference.tokenlog import NO_LIMIT, DatabaseLog, Event, Fenced, Tail, unpack

if TYPE_CHECKING:
    from inference.models import Generation

KEPT_MILLISECONDS = 60 * 60 * 1000  # of a log that nobody writes any more; it is in the database
PATIENCE = timedelta(seconds=60)  # with a Redis that is away, before a dead run ends without it
SAVE_AT_TOKENS = 64
SAVE_AT_BYTES = 4096


class LiveLog(DatabaseLog):
    """One object for one writer: it remembers what is not saved yet. Readers need no memory."""

    is_live = True

    def __init__(self, generation_id: UUID) -> None:
        super().__init__(generation_id)
        self._head = redis_server.name("log", f"{{{generation_id}}}")
        self._channel = redis_server.name("bell", f"gen:{generation_id}")
        self._writer: Writer | None = None

    # --- readers --------------------------------------------------------------------------
    def read(self, epoch: int, after: int, limit: int = NO_LIMIT) -> list[Event]:
        """The first events after `after`; from the start when `epoch` is not the current one."""
        found = None
        with contextlib.suppress(Away):
            if not redis_server.server().is_away:  # others look whether it is back: none waits
                found = redis_server.server().run(READ, self._head, epoch, after, limit)
        if found is None or int(found[0]) < epoch:  # gone, or left over from before
            return super().read(epoch, after, limit)
        now, base = int(found[0]), int(found[1])
        newest = _events(found)
        start = after if now == epoch else 0
        if start >= base:  # (a full Redis keeps what it has, and takes nothing more)
            return newest or super().read(epoch, after, limit)
        older = super().read(now, start, limit)
        if not older or older[-1].epoch != now:
            return older  # what Redis has is left over from before
        if len(older) == limit and older[-1].seq < base:
            return older
        # What is saved meanwhile is in both.
        return ([event for event in older if event.seq <= base] + newest)[:limit]

    async def news(self, epoch: int, after: int, limit: int = NO_LIMIT) -> list[Event] | None:
        try:
            found = await run_script(READ, self._head, epoch, after, limit)
        except Away:
            return None
        # Not there, another epoch than the reader's, or begun after what the reader has.
        if found is None or int(found[0]) != epoch or int(found[1]) > after:
            return None
        return _events(found)

    def text(self) -> str:
        return "".join(event.text for event in self.read(-1, 0))

    # --- the one writer -------------------------------------------------------------------
    def begin(self, run: "Generation") -> Tail:
        if run.fence > 1 or run.log_seq:
            return self.adopt(run.fence)
        return self._begin_where_saved(run.fence, Tail(run.epoch, 0, "", ()))

    def adopt(self, fence: int) -> Tail:
        tail = super().adopt(fence)
        answer = self._ask_twice_for_the_rest(fence, tail)
        if answer is None:
            return self._begin_where_saved(fence, tail)
        writer = Writer(fence, tail.epoch, tail.seq, tail.seq, len(tail.text), entries=answer)
        for entry in answer:
            writer.seq, writer.characters = entry.seq, writer.characters + len(entry.text)
        writer.told = writer.seq
        self._writer = writer
        self.save(fence)
        text = "".join(entry.text for entry in answer)
        ids = unpack(b"".join(entry.token_ids for entry in answer))
        finish = answer[-1].finish if answer else tail.finish
        return Tail(tail.epoch, writer.seq, tail.text + text, tail.token_ids + ids, finish)

    def _ask_twice_for_the_rest(self, fence: int, tail: Tail) -> list[Entry] | None:
        """One slow answer to somebody else must not take back what readers have seen."""
        for pause in (redis_server.TRY_AGAIN_SECONDS, 0):
            try:
                return self._ask_for_the_rest(fence, tail)
            except Away:
                time.sleep(pause * 1.1)
        return None

    def _ask_for_the_rest(self, fence: int, tail: Tail) -> list[Entry] | None:
        """Events after the saved ones; None when it cannot be known. Shuts out earlier writers.

        Raises Away, Fenced.
        """
        args = (fence, tail.epoch, tail.seq)
        answer = redis_server.server().run(ADOPT, self._head, *args)
        if answer[0] == b"fenced":
            raise Fenced
        return list(_entries(answer[1])) if answer[0] == b"ok" else None

    def _begin_where_saved(self, fence: int, tail: Tail) -> Tail:
        """Readers may have seen more than the database has: they are sent back to it.

        Not of a first writer's log, in which nobody has written yet.
        """
        epoch = self._raise_epoch(fence) if fence > 1 else tail.epoch
        self._writer = Writer(fence, epoch, tail.seq, tail.seq, len(tail.text))
        self._try_to_seed(self._writer)
        return Tail(epoch, tail.seq, tail.text, tail.token_ids, tail.finish)

    def _raise_epoch(self, fence: int) -> int:
        """The saved events become those of the next epoch."""
        held = self._generations().filter(pk=self.id, fence=fence, status="running")
        with transaction.atomic():
            if not held.update(epoch=F("epoch") + 1):
                raise Fenced
            epoch: int = held.values_list("epoch", flat=True)[0]
            self._of_epoch(epoch - 1).update(epoch=epoch)
        return epoch

    def _of_epoch(self, epoch: int) -> Any:
        from inference.models import Chunk

        return Chunk.objects.filter(generation=self.id, epoch=epoch)

    def append(
        self,
        fence: int,
        seq: int,
        text: str,
        token_ids: Sequence[int],
        prompt: tuple[int, str] | None = None,
        finish: str = "",
    ) -> bool:
        writer = self._written_by(fence)
        entry = self._add(writer, seq, text, token_ids, prompt, finish)
        try:
            answer = redis_server.server().run(APPEND, self._head, *self._told(writer, entry))
        except Away:
            answer = None
        writer.told = entry.seq
        self._heard(writer, answer)
        failpoints.hit("after_append")
        return bool(answer == b"stop")

    async def aappend(
        self,
        fence: int,
        seq: int,
        text: str,
        token_ids: Sequence[int],
        prompt: tuple[int, str] | None = None,
        finish: str = "",
    ) -> bool:
        writer = self._writer
        if writer is None or writer.fence != fence:
            return await super().aappend(fence, seq, text, token_ids, prompt, finish)
        entry = self._add(writer, seq, text, token_ids, prompt, finish)
        try:
            answer = await run_script(APPEND, self._head, *self._told(writer, entry))
        except Away:
            answer = None
        writer.told = entry.seq
        if answer not in (b"ok", b"stop", None):
            await in_live_log(self._heard, writer, answer)
        failpoints.hit("after_append")
        return bool(answer == b"stop")

    def _written_by(self, fence: int) -> Writer:
        if self._writer is None or self._writer.fence != fence:
            self.adopt(fence)
        assert self._writer is not None
        return self._writer

    def _add(
        self, writer: Writer, seq: int, text: str, token_ids: Sequence[int],
        prompt: tuple[int, str] | None, finish: str = "",
    ) -> Entry:  # fmt: skip
        failpoints.hit("before_append")
        if seq != writer.seq + 1:
            raise Fenced
        entry = writer.add(text, token_ids, finish)
        writer.prompt = writer.prompt or prompt
        failpoints.hit("in_append")
        return entry

    def _told(self, writer: Writer, entry: Entry) -> tuple[Any, ...]:
        """What APPEND is given."""
        head = (writer.fence, writer.epoch, entry.seq, KEPT_MILLISECONDS, self._channel)
        return (*head, *entry.arguments)

    def _heard(self, writer: Writer, answer: bytes | None) -> None:
        """What APPEND says; None: nothing. An event that Redis missed is in memory."""
        if answer == b"fenced":
            raise Fenced
        if answer == b"foreign":
            self._take_over(writer)
        elif answer in (b"missing", b"stale"):
            self._seed_if_ours(writer)

    def _take_over(self, writer: Writer) -> None:
        """An earlier writer made the log anew, after ours was gone: what it showed is void."""
        held = {"pk": self.id, "fence": writer.fence, "status": "running"}
        try:
            epoch = self._generations().filter(**held).values_list("epoch", flat=True).first()
            if epoch == writer.epoch:  # else it was raised, and only the answer got lost
                self.save(writer.fence)
                epoch = self._raise_epoch(writer.fence)
        except DatabaseError:
            return  # the next event meets it again
        if epoch is None:
            raise Fenced
        with writer.lock:
            writer.epoch = epoch
        self._try_to_seed(writer)

    def _seed_if_ours(self, writer: Writer) -> None:
        """The database says whose it is, because Redis does not know any more."""
        held = {"pk": self.id, "fence": writer.fence, "status": "running", "epoch": writer.epoch}
        try:
            if not self._generations().filter(**held).exists():
                raise Fenced
        except DatabaseError:
            return
        self._try_to_seed(writer)

    def _try_to_seed(self, writer: Writer) -> None:
        with writer.lock:
            head = (writer.fence, writer.epoch, writer.saved, writer.seq)
            entries = [part for entry in writer.entries for part in entry.arguments]
        args = (*head, KEPT_MILLISECONDS, self._channel, *entries)
        try:
            answer = redis_server.server().run(SEED, self._head, *args)
        except Away:
            return  # the next event meets that it is missing
        if answer == b"fenced":
            raise Fenced

    def restart(self, fence: int) -> Tail:
        tail = super().restart(fence)
        prompt = self._writer.prompt if self._writer else None
        self._writer = Writer(fence, tail.epoch, 0, 0, 0, prompt=prompt)
        self._try_to_seed(self._writer)
        return tail

    # --- into the database ----------------------------------------------------------------
    def wants_saving(self) -> bool:
        writer = self._writer
        if writer is None or not writer.entries:
            return False
        tokens = sum(len(entry.token_ids) for entry in writer.entries) // 4
        size = sum(len(entry.text) for entry in writer.entries)
        return writer.is_new or tokens >= SAVE_AT_TOKENS or size >= SAVE_AT_BYTES

    def unsaved(self) -> Unsaved | None:
        """A picture of what may go into the database by now; None when there is nothing."""
        return self._writer.picture(self.id, self._writer.told) if self._writer else None

    def _all_unsaved(self) -> Unsaved | None:
        return self._writer.picture(self.id, self._writer.seq) if self._writer else None

    def saved(self, unsaved: Unsaved) -> None:
        """What the picture showed is in the database now."""
        writer = self._writer
        if writer is None or writer.fence != unsaved.fence or writer.epoch != unsaved.epoch:
            return
        if unsaved.entries:
            writer.drop_saved(unsaved.entries[-1].seq)
        if writer.prompt == unsaved.prompt:
            writer.prompt = None

    def save(self, fence: int) -> None:
        """Raises Fenced."""
        if (
            self._writer is not None
            and self._writer.fence == fence
            and (rest := self._all_unsaved())
        ):
            self._write(rest)
            self.saved(rest)

    def release(self, fence: int) -> None:
        self.save(fence)
        if self._writer is not None and self._writer.fence == fence:
            args = (fence + 1, self._writer.epoch, self._writer.seq)
            self._writer = None
            with contextlib.suppress(Away):  # then this writer cannot write there either
                redis_server.server().run(ADOPT, self._head, *args)

    def _write(self, rest: Unsaved) -> None:
        if not save([rest]):
            raise Fenced

    # --- the end --------------------------------------------------------------------------
    def finish(self, fence: int, seq: int, kind: str, **result: Any) -> None:
        if seq != self._written_by(fence).seq + 1:
            raise Fenced
        super().finish(fence, seq, kind, **result)

    def _before_its_end(self) -> None:
        if rest := self._all_unsaved():
            self._write(rest)  # and stays in memory, should this transaction fail

    def _without_its_worker(self, run: "Generation") -> "Generation | None":
        """Bring into the database what Redis has of a run whose worker is gone."""
        if run.fence == 0:
            return run  # nobody ever wrote
        try:
            entries = self._ask_for_the_rest(run.fence + 1, super()._tail(run))
        except Fenced:
            return None
        except Away:
            if not self._has_waited_long(run):
                return None  # it may come back with the rest
            entries = None
        if entries is None:
            self._raise_epoch(run.fence)
        elif entries:
            self._write(Unsaved(self.id, run.fence, run.epoch, tuple(entries), None))
        found: Generation = self._generations().get(pk=self.id)
        return found

    def _has_waited_long(self, run: "Generation") -> bool:
        lapsed = Now() - PATIENCE
        return bool(self._generations().filter(pk=run.pk, lease_until__lt=lapsed).exists())

    def _announce(self) -> None:
        """It has ended: the database has everything."""
        self._writer = None
        with contextlib.suppress(Away):  # it expires; readers look at the row as well
            redis_server.server().run(CLOSE, self._head, self._channel)

    def ask_to_stop(self) -> None:
        with contextlib.suppress(Away):  # its worker looks every second
            redis_server.server().run(STOP, self._head)


def _events(found: Any) -> list[Event]:
    """Those in an answer of READ."""
    return [entry.event(int(found[0])) for entry in _entries(found[2])]


def _entries(events: Iterable[Any]) -> Iterable[Entry]:
    for number, fields in events:
        found = dict(zip(fields[::2], fields[1::2], strict=True))
        seq = int(number.partition(b"-")[0])
        finish = found.get(b"f", b"").decode()  # (an older worker writes none)
        yield Entry(seq, int(found[b"o"]), found[b"t"].decode(), found[b"i"], finish)
