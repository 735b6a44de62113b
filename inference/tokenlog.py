"""The log of a generation: dense, fenced, ended once. Readers are fed from nothing else.

`DatabaseLog` keeps it in Chunk rows with its head on the Generation row. The contract
that every back end must keep is tests/contract/test_tokenlog.py.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import F, OuterRef, Subquery, Value
from django.db.models.functions import Coalesce, Now
from django.utils.module_loading import import_string

from inference import doorbell, failpoints
from inference.database import in_database, in_live_log, now_sql
from inference.engines.text import estimated_tokens

if TYPE_CHECKING:
    from inference.models import Generation

NO_LIMIT = 2**31 - 1


class Fenced(Exception):
    """The log has another writer now, or has ended: stop at once, your work is not wanted."""


@dataclass(frozen=True, slots=True)
class Event:
    """`offset` counts the characters (Unicode code points) before `text`.

    finish: why this text is the answer's last, if it is; the terminal event follows.
    """

    epoch: int
    seq: int
    kind: str
    offset: int
    text: str
    finish: str = ""

    @property
    def is_terminal(self) -> bool:
        return self.kind != "delta"


@dataclass(frozen=True, slots=True)
class Tail:
    """Where a new writer goes on: everything logged so far.

    finish: why it is the whole answer, if it is.
    """

    epoch: int
    seq: int
    text: str
    token_ids: tuple[int, ...]
    finish: str = ""

    @property
    def tokens(self) -> int:
        """How many; about how many where the engine is not told them."""
        return len(self.token_ids) or estimated_tokens(self.text)


def pack(token_ids: Sequence[int]) -> bytes:
    """Token ids as little 4-byte integers."""
    return array("i", token_ids).tobytes()


def unpack(data: bytes) -> tuple[int, ...]:
    return tuple(array("i", data))


def read_many(places: Sequence[tuple[UUID, int, int]], limit: int) -> list[list[Event]]:
    """For each reader of a log the first events after its (epoch, seq), in one query.

    From the log's start when that epoch is over.
    """
    marks = ", ".join(["(%s, %s, %s, %s, %s)"] * len(places))
    sql = f"""
        WITH reader (number, id, epoch, seen, last) AS (VALUES {marks})
        SELECT reader.number, c.epoch, c.seq, c.kind, c."offset", c.text, c.finish
        FROM reader
        JOIN inference_generation g ON g.id = reader.id
        JOIN inference_chunk c ON c.generation_id = g.id AND c.epoch = g.epoch
            AND c.seq > CASE WHEN g.epoch = reader.epoch THEN reader.seen ELSE 0 END
            AND c.seq <= CASE WHEN g.epoch = reader.epoch THEN reader.last ELSE %s END
        ORDER BY reader.number, c.seq
    """  # (events are dense: the first of them are those of the next numbers)
    values = [
        value
        for number, (pk, epoch, seen) in enumerate(places)
        for value in (number, DatabaseLog(pk)._key(), epoch, seen, min(seen + limit, NO_LIMIT))
    ]
    found: list[list[Event]] = [[] for _ in places]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*values, limit])
        for number, *event in cursor.fetchall():
            found[number].append(Event(*event))
    return found


class DatabaseLog:
    """The log in the database: every write checks the fence in the same transaction."""

    is_live = False  # whether the newest part is elsewhere, and has to be saved

    def __init__(self, generation_id: UUID) -> None:
        self.id = generation_id

    # --- readers --------------------------------------------------------------------------
    def read(self, epoch: int, after: int, limit: int = NO_LIMIT) -> list[Event]:
        """The first events after `after`; from the start when `epoch` is not the current one."""
        return read_many([(self.id, epoch, after)], limit)[0]

    async def news(self, epoch: int, after: int, limit: int = NO_LIMIT) -> list[Event] | None:
        """The same from the newest part alone, cheaply; None: only `read` can tell."""
        return None

    def text(self) -> str:
        return "".join(self._chunks().values_list("text", flat=True))

    def _chunks(self) -> "models.QuerySet[Any]":
        from inference.models import Chunk

        return Chunk.objects.filter(generation=self.id, epoch=F("generation__epoch")).order_by(
            "seq"
        )

    # --- the one writer -------------------------------------------------------------------
    def begin(self, run: "Generation") -> Tail:
        """Become the writer of a run as it was claimed, and learn what is logged already."""
        if run.log_seq == 0:
            return Tail(run.epoch, 0, "", ())  # the first append checks the fence
        return self.adopt(run.fence)

    def adopt(self, fence: int) -> Tail:
        """Become the writer under `fence` (from a claim) and learn what is logged already."""
        run = self._generations().filter(pk=self.id, fence=fence, status="running").first()
        if run is None:
            raise Fenced
        return self._tail(run)

    def _tail(self, run: "Generation") -> Tail:
        fields = ("text", "token_ids", "finish")
        rows = list(self._chunks().values_list(*fields)) if run.log_seq else []
        ids = b"".join(bytes(row[1]) for row in rows)
        finish = rows[-1][2] if rows else ""
        return Tail(run.epoch, run.log_seq, "".join(row[0] for row in rows), unpack(ids), finish)

    def append(
        self,
        fence: int,
        seq: int,
        text: str,
        token_ids: Sequence[int],
        prompt: tuple[int, str] | None = None,
        finish: str = "",
    ) -> bool:
        """Write event `seq`; True means somebody asked the run to stop.

        `prompt`: how many tokens it has and their hash, stored unless they are already;
        `finish`: why this is the last of the text, if it is.

        Raises Fenced when the fence is not current, `seq` is not the next one, or the
        log has ended; then nothing is written.
        """
        failpoints.hit("before_append")
        with transaction.atomic():
            epoch, characters, cancelled = self._advance(fence, seq, len(text))
            before = characters - len(text)
            self._insert(epoch, seq, fence, "delta", before, text, token_ids, finish)
            if prompt is not None:
                self.keep_prompt(*prompt)
            failpoints.hit("in_append")
        failpoints.hit("after_append")
        doorbell.ring(f"gen:{self.id}")
        return cancelled

    async def aappend(
        self,
        fence: int,
        seq: int,
        text: str,
        token_ids: Sequence[int],
        prompt: tuple[int, str] | None = None,
        finish: str = "",
    ) -> bool:
        """`append` for asyncio code."""
        run = in_live_log if self.is_live else in_database
        return await run(self.append, fence, seq, text, token_ids, prompt, finish)

    def _advance(self, fence: int, seq: int, characters: int) -> tuple[int, int, bool]:
        # Raw SQL: this runs for every flush of every stream, and RETURNING saves a query.
        sql = f"""
            UPDATE inference_generation
            SET log_seq = log_seq + 1, log_characters = log_characters + %s,
                fruitless_attempts = 0, shared_attempts = 0,
                first_token_at = COALESCE(first_token_at, {now_sql()})
            WHERE id = %s AND fence = %s AND log_seq = %s AND status = 'running'
            RETURNING epoch, log_characters, cancelled_at
        """  # (SQLite 3.40 answers `cancelled_at IS NOT NULL` wrongly in a RETURNING clause)
        with connection.cursor() as cursor:
            cursor.execute(sql, [characters, self._key(), fence, seq - 1])
            row = cursor.fetchone()
        if row is None:
            raise Fenced
        return row[0], row[1], row[2] is not None

    def _insert(
        self, epoch: int, seq: int, fence: int, kind: str, offset: int, text: str,
        token_ids: Sequence[int] = (), finish: str = "",
    ) -> None:  # fmt: skip
        sql = """
            INSERT INTO inference_chunk
                (generation_id, epoch, seq, fence, kind, "offset", text, token_ids, finish)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        """
        values = [self._key(), epoch, seq, fence, kind, offset, text, pack(token_ids), finish]
        with connection.cursor() as cursor:
            cursor.execute(sql, values)

    def keep_prompt(self, tokens: int, sha256: str) -> None:
        sql = """
            UPDATE inference_prompt SET tokens = %s, sha256 = %s
            WHERE generation_id = %s AND sha256 = ''
        """
        with connection.cursor() as cursor:
            cursor.execute(sql, [tokens, sha256, self._key()])

    def prepare(self, fence: int, prompt: dict[str, Any], **figures: int) -> None:
        """Before the answer begins: store what is found out of its prompt, and what that took.

        `prompt` are fields of Prompt, `figures` of Generation. Raises Fenced like append.
        """
        from inference.models import Prompt

        held = self._generations().filter(pk=self.id, fence=fence, status="running")
        with transaction.atomic():
            if not held.update(**figures):
                raise Fenced
            Prompt.objects.filter(pk=self.id).update(**prompt)

    def restart(self, fence: int) -> Tail:
        """Make everything logged void: the answer begins anew, in the next epoch.

        Readers are told with the first event of that. Raises Fenced like append.
        """
        held = self._generations().filter(pk=self.id, fence=fence, status="running")
        beginning = {"log_seq": 0, "log_characters": 0, "inherited_tokens": 0}
        with transaction.atomic():
            if not held.update(epoch=F("epoch") + 1, **beginning):
                raise Fenced
            return Tail(held.get().epoch, 0, "", ())

    def finish(self, fence: int, seq: int, kind: str, **result: Any) -> None:
        """Write the terminal event, the result and what follows from it, all or nothing.

        `result` are fields of Generation (text, token_ids, usage, error…).
        Raises Fenced like append.
        """
        failpoints.hit("before_finish")
        guard = {"fence": fence, "log_seq": seq - 1, "status": "running"}
        if not self._end(kind, guard, result):
            raise Fenced
        failpoints.hit("after_finish")
        self._announce()

    def end_unclaimed(
        self, kind: str, error: str = "", among: "models.QuerySet[Generation] | None" = None
    ) -> bool:
        """End a run that no living worker holds; False when one does, or it has ended.

        One whose readers have been told that it is whole is done, whatever came then.
        `among`: only if it is one of these, seen after all that it logged is in the database.
        """
        from inference.models import Prompt

        with transaction.atomic():
            found = self._generations().unheld().filter(pk=self.id).select_for_update().first()
            run = found and self._without_its_worker(found)
            if run is None:
                return False
            if among is not None and not among.filter(pk=self.id).exists():
                # Whoever had it may be shut out of the live log already: so be it here too.
                self._generations().filter(pk=self.id).update(fence=F("fence") + 1)
                return False
            tail = self._tail(run)
            reason = kind
            if tail.finish:
                kind, reason, error = "done", tail.finish, ""
            read = Prompt.objects.filter(pk=self.id).values_list("tokens", flat=True).first()
            result = {
                "text": tail.text,
                "token_ids": pack(tail.token_ids),
                "prompt_tokens": read or 0,
                "completion_tokens": max(0, tail.tokens - run.inherited_tokens),
                "error": error,
                "finish_reason": reason,
                "fence": F("fence") + 1,
            }
            ended = self._end(kind, {"fence": run.fence, "log_seq": run.log_seq}, result)
        if ended:
            self._announce()
        return ended

    def _end(self, kind: str, guard: dict[str, Any], result: dict[str, Any]) -> bool:
        from inference.models import Worker

        # Copied, since rows of workers do not last; from there, since a dead worker cannot tell.
        worker = Worker.objects.filter(pk=OuterRef("boot_id"))
        build = Coalesce(Subquery(worker.values("engine_build")), Value(""))
        with transaction.atomic():
            self._before_its_end()
            ended = (
                self._generations()
                .filter(pk=self.id, **guard)
                .update(
                    status=kind,
                    log_seq=F("log_seq") + 1,
                    lease_until=None,
                    finished_at=Now(),
                    engine_build=build,
                    **result,
                )
            )
            if ended:
                # With what follow-ups need: in a burst of ends, each query counts.
                whole = self._generations().select_related("user", "release__model")
                run = whole.get(pk=self.id)
                self._insert(run.epoch, run.log_seq, run.fence, kind, run.log_characters, "")
                failpoints.hit("in_finish")
                import_string(settings.GENERATION_FINISHED)(run)
        return bool(ended)

    def inherit(self, ended: "Generation") -> None:
        """Start this log with everything an ended run produced, as its first event."""
        self._insert(0, 1, 0, "delta", 0, ended.text, unpack(bytes(ended.token_ids)))
        self._generations().filter(pk=self.id).update(
            log_seq=1,
            log_characters=len(ended.text),
            inherited_tokens=ended.inherited_tokens + ended.completion_tokens,
        )

    # --- what another back end does besides ------------------------------------------------
    def wants_saving(self) -> bool:
        """Now, and not with the next round: the first event, or many."""
        return False

    def save(self, fence: int) -> None:
        """Bring into the database what is not there yet. Raises Fenced."""

    def release(self, fence: int) -> None:
        """This writer writes no more, and everything is to be in the database. Raises Fenced."""

    def _before_its_end(self) -> None:
        """In the transaction that ends the run."""

    def _without_its_worker(self, run: "Generation") -> "Generation | None":
        """The run, with all that its last worker has logged; None: it cannot be ended now."""
        return run

    def _announce(self) -> None:
        """The end is in the database."""
        doorbell.ring(f"gen:{self.id}")

    def ask_to_stop(self) -> None:
        """Somebody did, and it is in the database: an append sees it there."""

    # --- plumbing -------------------------------------------------------------------------
    def _generations(self) -> Any:
        from inference.models import Generation

        return Generation.objects

    def _key(self) -> Any:
        from inference.models import Generation

        return Generation._meta.pk.get_db_prep_value(self.id, connection)
