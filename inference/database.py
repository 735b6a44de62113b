"""Database work from asyncio code: a few threads of our own, each with a lasting connection.

Django's `database_sync_to_async` shares one thread per process outside a request, and opens
connections per request inside one; neither suits dozens of streams.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import ParamSpec, TypeVar

from django.db import connection

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 4

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")


async def in_database(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a synchronous function that uses the ORM; its exceptions are raised here."""

    def call() -> T:
        try:
            return function(*args, **kwargs)
        except Exception:
            connection.close_if_unusable_or_obsolete()
            raise

    return await asyncio.get_running_loop().run_in_executor(_threads, call)


def close_connections() -> None:
    """Close every thread's connection (a test database can only then be dropped)."""
    together = Barrier(THREADS)

    def close() -> None:
        together.wait(timeout=30)  # so that each thread gets one of these calls
        connection.close()

    for done in [_threads.submit(close) for _ in range(THREADS)]:
        done.result()
