"""The database from asyncio code and from raw SQL.

Work goes to a few threads of our own, each with a lasting connection.

Django's `database_sync_to_async` shares one thread per process outside a request, and opens
connections per request inside one; neither suits dozens of streams.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import ParamSpec, TypeVar

from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 4

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")
_opened: set[BaseDatabaseWrapper] = set()


async def in_database(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function that uses the ORM; its exceptions are raised here."""

    def call() -> T:
        mine = connections["default"]
        _opened.add(mine)
        try:
            return function(*args, **kwargs)
        finally:
            _close_if_broken(mine)

    return await asyncio.get_running_loop().run_in_executor(_threads, call)


def _close_if_broken(used: BaseDatabaseWrapper) -> None:
    """A connection the server has dropped is opened anew by the next call."""
    if not used.errors_occurred:
        return
    if used.is_usable():
        used.errors_occurred = False
    else:
        used.close()


def close_connections() -> None:
    """Close what the threads keep open; they open it again when they need it."""
    for opened in list(_opened):
        opened.inc_thread_sharing()
        try:
            opened.close()
        finally:
            opened.dec_thread_sharing()


def now_sql(later: timedelta = timedelta()) -> str:
    """The database's clock, as Django's Now() writes it, so many whole seconds on."""
    seconds = int(later.total_seconds())
    if connection.vendor == "sqlite":
        return f"STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', '+{seconds} seconds')"
    return f"STATEMENT_TIMESTAMP() + INTERVAL '{seconds} seconds'"
