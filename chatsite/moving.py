"""From one database into another: every row, verified, and gone on with where it broke off.

Both are read and written through the models, so that SQLite and PostgreSQL see the same values.
Rows go in the order of their keys; a foreign key that may be empty and points to a table that is
not there yet is filled in afterwards.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.apps import apps
from django.core.management.color import no_style
from django.db import connections, models, transaction
from django.db.models import Model

from inference import failpoints

AT_ONCE = 500
Table = type[Model]
MADE_BY_MIGRATE = ("contenttypes.ContentType", "auth.Permission")


class CannotMove(Exception):
    """One sentence about why, and what to do."""


class Move:
    """`told(table, done, of)` is called as it goes on."""

    def __init__(
        self, source: str, target: str, told: Callable[[str, int, int], None] = lambda *_: None
    ) -> None:
        self.source, self.target, self._told = source, target, told
        self.tables = ordered_tables()

    def run(self) -> int:
        """Returns how many rows are in the target. Raises CannotMove."""
        if self._target_is_new():
            for label in reversed(MADE_BY_MIGRATE):
                apps.get_model(label)._base_manager.using(self.target).all().delete()
        with times_as_they_are(self.tables):
            for table in self.tables:
                self._copy(table)
            for table in self.tables:
                self._fill_in(table)
        self._reset_sequences()
        return sum(self._verify(table) for table in self.tables)

    def _target_is_new(self) -> bool:
        """No people are there; those of an earlier try are the source's."""
        people = apps.get_model("accounts.User")._base_manager
        there = set(people.using(self.target).values_list("pk", "username"))
        here = set(people.using(self.source).values_list("pk", "username"))
        if not there <= here:
            raise CannotMove(
                "The target has people who are not in the source: it is a site of its own. "
                "Name an empty database."
            )
        return not there

    def _copy(self, table: Table) -> None:
        rows, there = self._rows(table, self.source), self._rows(table, self.target)
        total, done = rows.count(), there.count()
        last = there.order_by("-pk").values_list("pk", flat=True).first()
        late = late_fields(table, self.tables)
        for batch in batches(rows, last):
            for row in batch:
                for field in late:
                    setattr(row, field.attname, None)
            with transaction.atomic(using=self.target):
                there.bulk_create(batch, ignore_conflicts=True)
            failpoints.hit("moved")
            done += len(batch)
            self._told(table._meta.label, done, total)

    def _fill_in(self, table: Table) -> None:
        late = late_fields(table, self.tables)
        if not late:
            return
        for batch in batches(self._rows(table, self.source), None):
            with transaction.atomic(using=self.target):
                names = [field.name for field in late]
                self._rows(table, self.target).bulk_update(batch, names, batch_size=100)

    def _reset_sequences(self) -> None:
        """Keys were given; the next new row must come after them."""
        connection = connections[self.target]
        with connection.cursor() as cursor:
            for sql in connection.ops.sequence_reset_sql(no_style(), self.tables):
                cursor.execute(sql)

    def _verify(self, table: Table) -> int:
        here, there = (checksum(self._rows(table, alias)) for alias in (self.source, self.target))
        if here != there:
            raise CannotMove(
                f"{table._meta.label} is not the same on both sides ({here[0]} and {there[0]} "
                "rows). Was the site running? Stop it, empty the target and start again."
            )
        return here[0]

    def _rows(self, table: Table, alias: str) -> Any:
        return table._base_manager.using(alias)


@contextlib.contextmanager
def times_as_they_are(tables: Sequence[Table]) -> Iterator[None]:
    """Django would write the time of the move into fields that it fills in by itself."""
    fields: list[Any] = [f for table in tables for f in table._meta.concrete_fields]
    own = [(f, name) for f in fields for name in ("auto_now", "auto_now_add") if vars(f).get(name)]
    for field, name in own:
        setattr(field, name, False)
    try:
        yield
    finally:
        for field, name in own:
            setattr(field, name, True)


def ordered_tables() -> list[Table]:
    """All of them, each after those that it cannot do without."""
    waiting = [
        model
        for model in apps.get_models(include_auto_created=True)
        if model._meta.managed and not model._meta.proxy
    ]
    ordered: list[Table] = []
    while waiting:
        ready = [model for model in waiting if needs(model) <= set(ordered)]
        assert ready, f"tables that need each other: {waiting}"
        ordered += ready
        waiting = [model for model in waiting if model not in ready]
    return ordered


def needs(table: Table) -> set[Table]:
    return {related(field) for field in keys(table) if not field.null} - {table}


def late_fields(table: Table, tables: Sequence[Table]) -> list[Any]:
    """Keys that may be empty and point to this table or a later one."""
    before = set(tables[: tables.index(table)])
    return [field for field in keys(table) if field.null and related(field) not in before]


def keys(table: Table) -> list[Any]:
    return [f for f in table._meta.concrete_fields if isinstance(f, models.ForeignKey)]


def related(field: Any) -> Table:
    table: Table = field.related_model
    return table


def batches(rows: Any, after: Any) -> Iterator[list[Model]]:
    while True:
        rest = rows.order_by("pk") if after is None else rows.filter(pk__gt=after).order_by("pk")
        batch = list(rest[:AT_ONCE])
        if not batch:
            return
        yield batch
        after = batch[-1].pk


def checksum(rows: Any) -> tuple[int, str]:
    """How many, and a SHA-256 over all their values in the order of their keys."""
    names = [field.attname for field in rows.model._meta.concrete_fields]
    digest, count = hashlib.sha256(), 0
    for batch in batches(rows, None):
        for row in batch:
            digest.update(repr([plain(getattr(row, name)) for name in names]).encode())
        count += len(batch)
    return count, digest.hexdigest()


def plain(value: Any) -> Any:
    """The same for the same value, whichever database it came from."""
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return sorted((key, plain(each)) for key, each in value.items())
    return value
