"""Changes of tables that people are using: no statement of theirs may wait long behind one.

ALTER TABLE waits for everybody who has read the table in a transaction that is still open, and
everybody who comes later waits behind it, readers too.
"""

from django.db.backends.postgresql.schema import DatabaseSchemaEditor

LOCK_MILLISECONDS = 500


class SchemaEditor(DatabaseSchemaEditor):
    def __enter__(self) -> "SchemaEditor":
        super().__enter__()
        if self.atomic_migration:  # else it may leave half of something, and locks hardly anything
            self.execute(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}", None)
        return self
