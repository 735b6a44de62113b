"""Database work from asyncio code: a few threads of our own, each with a lasting connection.

Django's `database_sync_to_async` shares one thread per process outside a request, and opens
connections per request inside one; neither suits dozens of streams.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 4

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")
_opened: set[BaseDatabaseWrapper] = set()


async def in_database(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function that uses the ORM; its exceptions are raised here."""

    def call() -> T:
        connection = connections["default"]
        _opened.add(connection)
        try:
            return function(*args, **kwargs)
        finally:
            _close_if_broken(connection)

    return await asyncio.get_running_loop().run_in_executor(_threads, call)


def _close_if_broken(connection: BaseDatabaseWrapper) -> None:
    """A connection the server has dropped is opened anew by the next call."""
    if not connection.errors_occurred:
        return
    if connection.is_usable():
        connection.errors_occurred = False
    else:
        connection.close()


def close_connections() -> None:
    """Close what the threads keep open; they open it again when they need it."""
    for connection in list(_opened):
        connection.inc_thread_sharing()
        try:
            connection.close()
        finally:
            connection.dec_thread_sharing()
