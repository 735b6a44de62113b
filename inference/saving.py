"""From workers' memory into the table of chunks: all streams of a worker in one transaction."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from inference.database import now_sql
from inference.tokenlog import DatabaseLog, Event, pack

FOR_UPDATE = {"sqlite": "", "postgresql": "ORDER BY id FOR UPDATE"}


@dataclass(frozen=True, slots=True)
class Entry:
    """An event on its way: `token_ids` are packed."""

    seq: int
    offset: int
    text: str
    token_ids: bytes
    finish: str = ""

    @property
    def end(self) -> int:
        """The characters up to here."""
        return self.offset + len(self.text)

    @property
    def arguments(self) -> tuple[int, int, str, bytes, str]:
        return self.seq, self.offset, self.text, self.token_ids, self.finish

    def event(self, epoch: int) -> Event:
        return Event(epoch, self.seq, "delta", self.offset, self.text, self.finish)


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What one writer wants in the database: dense events, the last of which it names."""

    id: UUID
    fence: int
    epoch: int
    entries: tuple[Entry, ...]
    prompt: tuple[int, str] | None


@dataclass(slots=True)
class Writer:
    """What the one writer knows of its log."""

    fence: int
    epoch: int
    seq: int  # the last event
    saved: int  # the last event that is in the database
    characters: int
    entries: list[Entry] = field(default_factory=list)  # those after `saved`
    prompt: tuple[int, str] | None = None  # not in the database yet
    is_new: bool = True  # it has saved nothing yet
    told: int = -1  # the last event that Redis has, or did not take
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.told = max(self.told, self.seq)

    def add(self, text: str, token_ids: Sequence[int], finish: str = "") -> Entry:
        entry = Entry(self.seq + 1, self.characters, text, pack(token_ids), finish)
        with self.lock:
            self.entries.append(entry)
            self.seq += 1
            self.characters += len(text)
        return entry

    def drop_saved(self, seq: int) -> None:
        with self.lock:
            self.saved = max(self.saved, seq)
            self.entries = [entry for entry in self.entries if entry.seq > self.saved]
            self.is_new = False

    def picture(self, pk: UUID, up_to: int) -> "Unsaved | None":
        """What is not in the database, up to an event; None when everything is.

        Events that Redis has not heard of yet wait for that. Should the worker die in between,
        its successor would find less there than in the database, and not know what was shown.
        """
        with self.lock:
            entries = tuple(entry for entry in self.entries if entry.seq <= up_to)
            prompt = None if self.entries and not entries else self.prompt  # with the first event
        return Unsaved(pk, self.fence, self.epoch, entries, prompt) if entries or prompt else None


def save(logs: Sequence[Unsaved]) -> set[UUID]:
    """Write what is not written yet; returns those whose fence was current.

    May be repeated: what an earlier try has written is left out, as is what belongs to an
    epoch that is over.
    """
    held = _go_on(logs) if connection.vendor == "postgresql" else set()
    rest = [log for log in logs if log.id not in held]
    return held | (_make_good(rest) if rest else set())


def _go_on(logs: Sequence[Unsaved]) -> set[UUID]:
    """Where the database has all that comes before: nearly always. In one round trip, not six.

    SQLite has no statement that writes to two tables.
    """
    ends = [(log, log.entries[0], log.entries[-1]) for log in logs if log.entries]
    if not ends:
        return set()
    known = [(_key(log.id), log.fence, log.epoch, first.seq - 1, last.seq, last.end)
             for log, first, last in ends]  # fmt: skip
    prompts = [(_key(log.id), *log.prompt) for log, *_ in ends if log.prompt]
    entries = [_row(log, entry) for log, *_ in ends for entry in log.entries]
    sql = GO_ON.format(
        now=now_sql(),
        ends=_marks(len(known), 6),
        entries=_marks(len(entries), 8),
        prompts=KEEP_PROMPTS.format(_marks(len(prompts), 3)) if prompts else "",
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [value for row in (*known, *entries, *prompts) for value in row])
        return {pk for (pk,) in cursor.fetchall()}


GO_ON = """
    WITH ends (id, fence, epoch, before, seq, characters) AS (VALUES {ends}),
    held AS (
        SELECT run.id FROM inference_generation AS run JOIN ends ON run.id = ends.id
        WHERE run.status = 'running' AND run.fence = ends.fence AND run.epoch = ends.epoch
            AND run.log_seq = ends.before
        ORDER BY run.id FOR UPDATE OF run
    ),
    moved AS (
        UPDATE inference_generation AS run
        SET log_seq = ends.seq, log_characters = ends.characters,
            fruitless_attempts = 0, shared_attempts = 0,
            first_token_at = COALESCE(first_token_at, {now})
        FROM ends WHERE run.id = ends.id AND run.id IN (SELECT id FROM held)
        RETURNING run.id
    ),
    entries (id, epoch, seq, fence, "offset", text, token_ids, finish) AS (VALUES {entries}),
    written AS (
        INSERT INTO inference_chunk
            (generation_id, epoch, seq, fence, kind, "offset", text, token_ids, finish)
        SELECT id, epoch, seq, fence, 'delta', "offset", text, token_ids, finish
        FROM entries JOIN moved USING (id)
    )
    {prompts}
    SELECT id FROM moved
"""
KEEP_PROMPTS = """, prompts (id, tokens, sha256) AS (VALUES {}),
    kept AS (
        UPDATE inference_prompt AS prompt SET tokens = prompts.tokens, sha256 = prompts.sha256
        FROM prompts JOIN moved USING (id)
        WHERE prompt.generation_id = prompts.id AND prompt.sha256 = ''
    )
"""


def _make_good(logs: Sequence[Unsaved]) -> set[UUID]:
    """Whatever the database has of them."""
    with transaction.atomic(savepoint=False):
        heads = lock_running([log.id for log in logs])
        held = [log for log in logs if heads.get(log.id, (None,))[0] == log.fence]
        new = {log.id: _new(log, *heads[log.id][1:]) for log in held}
        written = [log for log in held if new[log.id]]
        if written:
            _advance([(log.id, new[log.id][-1]) for log in written])
            _insert([(log, entry) for log in written for entry in new[log.id]])
        _keep_prompts(held)
    return {log.id for log in held}


def lock_running(ids: Sequence[UUID]) -> dict[UUID, tuple[int, int, int]]:
    """Until the transaction ends; fence, epoch and log_seq of those of these that are running."""
    marks = ", ".join(["%s"] * len(ids))
    sql = f"""
        SELECT id, fence, epoch, log_seq FROM inference_generation
        WHERE id IN ({marks}) AND status = 'running' {FOR_UPDATE[connection.vendor]}
    """
    keys = {_key(pk): pk for pk in ids}
    with connection.cursor() as cursor:
        cursor.execute(sql, list(keys))
        return {keys[key]: (fence, epoch, seq) for key, fence, epoch, seq in cursor.fetchall()}


def _new(log: Unsaved, epoch: int, saved: int) -> list[Entry]:
    return [entry for entry in log.entries if entry.seq > saved and log.epoch == epoch]


def _advance(ends: Sequence[tuple[UUID, Entry]]) -> None:
    sql = f"""
        WITH ends (id, seq, characters) AS (VALUES {_marks(len(ends), 3)})
        UPDATE inference_generation
        SET log_seq = ends.seq, log_characters = ends.characters,
            fruitless_attempts = 0, shared_attempts = 0,
            first_token_at = COALESCE(first_token_at, {now_sql()})
        FROM ends WHERE inference_generation.id = ends.id
    """
    _execute(sql, [(_key(pk), end.seq, end.end) for pk, end in ends])


def _insert(entries: Sequence[tuple[Unsaved, Entry]]) -> None:
    sql = f"""
        INSERT INTO inference_chunk
            (generation_id, epoch, seq, fence, "offset", text, token_ids, finish, kind)
        VALUES {_marks(len(entries), 9)}
    """
    _execute(sql, [(*_row(log, entry), "delta") for log, entry in entries])


def _row(log: Unsaved, entry: Entry) -> tuple[Any, ...]:
    head = (_key(log.id), log.epoch, entry.seq, log.fence)
    return (*head, entry.offset, entry.text, entry.token_ids, entry.finish)


def _marks(rows: int, columns: int) -> str:
    return ", ".join([f"({', '.join(['%s'] * columns)})"] * rows)


def _keep_prompts(logs: Sequence[Unsaved]) -> None:
    for log in logs:
        if log.prompt is not None:
            DatabaseLog(log.id).keep_prompt(*log.prompt)


def _execute(sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, [value for row in rows for value in row])


def _key(pk: UUID) -> Any:
    from inference.models import Generation

    return Generation._meta.pk.get_db_prep_value(pk, connection)
