"""From workers' memory into the table of chunks: all streams of a worker in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from inference.database import now_sql
from inference.tokenlog import DatabaseLog, Event

FOR_UPDATE = {"sqlite": "", "postgresql": "ORDER BY id FOR UPDATE"}


@dataclass(frozen=True, slots=True)
class Entry:
    """An event on its way: `token_ids` are packed."""

    seq: int
    offset: int
    text: str
    token_ids: bytes

    @property
    def arguments(self) -> tuple[int, int, str, bytes]:
        return self.seq, self.offset, self.text, self.token_ids

    def event(self, epoch: int) -> Event:
        return Event(epoch, self.seq, "delta", self.offset, self.text)


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What one writer wants in the database: dense events, the last of which it names."""

    id: UUID
    fence: int
    epoch: int
    entries: tuple[Entry, ...]
    prompt: tuple[int, str] | None


def save(logs: Sequence[Unsaved]) -> set[UUID]:
    """Write what is not written yet; returns those whose fence was current.

    May be repeated: what an earlier try has written is left out, as is what belongs to an
    epoch that is over.
    """
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
    marks = ", ".join(["(%s, %s, %s)"] * len(ends))
    sql = f"""
        WITH ends (id, seq, characters) AS (VALUES {marks})
        UPDATE inference_generation
        SET log_seq = ends.seq, log_characters = ends.characters,
            fruitless_attempts = 0, shared_attempts = 0,
            first_token_at = COALESCE(first_token_at, {now_sql()})
        FROM ends WHERE inference_generation.id = ends.id
    """
    rows = [(_key(pk), end.seq, end.offset + len(end.text)) for pk, end in ends]
    _execute(sql, rows)


def _insert(entries: Sequence[tuple[Unsaved, Entry]]) -> None:
    marks = ", ".join(["(%s, %s, %s, %s, 'delta', %s, %s, %s)"] * len(entries))
    sql = f"""
        INSERT INTO inference_chunk
            (generation_id, epoch, seq, fence, kind, "offset", text, token_ids)
        VALUES {marks}
    """
    _execute(sql, [(_key(log.id), log.epoch, e.seq, log.fence, e.offset, e.text, e.token_ids)
                   for log, e in entries])  # fmt: skip


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
