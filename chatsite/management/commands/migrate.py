"""manage.py migrate: Django's, for a database that people are using meanwhile."""

import random
import time
from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import OperationalError, connections
from django.db.migrations.recorder import MigrationRecorder

PATIENCE_SECONDS = 600.0
PAUSE_SECONDS = (1.0, 2.0)  # those who waited behind us go first
LOCK_NOT_AVAILABLE = "55P03"  # of PostgreSQL. (Not its deadlocks: an index that is made
# concurrently is left half made by one, and a second try would only say that it exists.)
TOO_LONG = (
    f"A table has been in use for {PATIENCE_SECONDS / 60:.0f} minutes: see pg_stat_activity for "
    "transactions that do not end. What was migrated before stays; start the command again."
)


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        """What could not get its locks soon is rolled back and tried again; the rest stays."""
        applied, give_up_at = -1, 0.0
        while True:
            try:
                super().handle(*args, **options)
                return
            except OperationalError as error:
                if not is_locked(error):
                    raise
                before, applied = applied, how_many_applied(options["database"])
                if applied != before:
                    give_up_at = time.monotonic() + PATIENCE_SECONDS
                elif time.monotonic() > give_up_at:
                    raise CommandError(TOO_LONG) from error
            self.stderr.write("A table is in use; trying again.")
            time.sleep(random.uniform(*PAUSE_SECONDS))


def how_many_applied(database: str) -> int:
    return len(MigrationRecorder(connections[database]).applied_migrations())


def is_locked(error: OperationalError) -> bool:
    """chatsite/postgresql/schema.py says how long a lock is waited for."""
    return getattr(error.__cause__, "sqlstate", "") == LOCK_NOT_AVAILABLE
