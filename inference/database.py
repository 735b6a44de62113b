"""The database from asyncio code and from raw SQL.

Work goes to a few threads of our own, each with a lasting connection.

Django's `database_sync_to_async` shares one thread per process outside a request, and opens
connections per request inside one; neither suits dozens of streams.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import ParamSpec, TypeVar

from django.db import Error, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 4
CLOSE_SECONDS = 30.0

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")
_live_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="live")


async def in_database(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function that uses the ORM; its exceptions are raised here."""
    return await _run(_threads, partial(function, *args, **kwargs))


async def in_live_log(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for what asks Redis first: a database that is away must not hold it up."""
    return await _run(_live_threads, partial(function, *args, **kwargs))


async def _run(threads: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    def call() -> T:
        mine = connections["default"]
        try:
            return function()
        finally:
            _close_if_broken(mine)

    return await asyncio.get_running_loop().run_in_executor(threads, call)


def _close_if_broken(used: BaseDatabaseWrapper) -> None:
    """A connection the server has dropped is opened anew by the next call."""
    if not used.errors_occurred:
        return
    if used.is_usable():
        used.errors_occurred = False
    else:
        used.close()


def close_connections() -> None:
    """Close what the threads keep open; they open it again when they need it.

    Each thread closes its own, after the work it is at: SQLite does not survive otherwise.
    """
    together = Barrier(2 * THREADS)  # so that every thread takes one of the calls

    def close() -> None:
        connections["default"].close()
        together.wait(CLOSE_SECONDS)

    pools = (_threads, _live_threads)
    for call in [pool.submit(close) for pool in pools for _ in range(THREADS)]:
        call.result()


def log_failure(log: logging.Logger, sentence: str) -> None:
    """Of the exception at hand: one line when it is the database's, which may be away."""
    error = sys.exc_info()[1]
    if isinstance(error, Error):
        reason = (str(error).splitlines() or [""])[0]
        log.warning("%s (%s: %s)", sentence, type(error).__name__, reason)
    else:
        log.error(sentence, exc_info=error)


def now_sql(later: timedelta = timedelta()) -> str:
    """The database's clock, as Django's Now() writes it, so many whole seconds on (or back)."""
    seconds = int(later.total_seconds())
    if connection.vendor == "sqlite":
        return f"STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', '{seconds:+} seconds')"
    return f"STATEMENT_TIMESTAMP() + INTERVAL '{seconds} seconds'"
