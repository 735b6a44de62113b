"""How long a request waits for a connection, and what becomes of those a restart broke.

Left to itself, the pool tries a lost server again after one, two and four seconds, and gives
out its broken connections one after the other, with as long pauses between.
"""

import logging
import time
from typing import Any

import psycopg
from django.db.backends.postgresql import base
from psycopg_pool import ConnectionPool, PoolTimeout

from chatsite.postgresql import room
from chatsite.postgresql.schema import SchemaEditor

LOOK_SECONDS = 0.3  # the pool is asked anew, which is when it tries to connect
REFUSED_SECONDS = 0.8  # and so long if the server refuses
PATIENCE_SECONDS = 3.0  # longest wait when it is only slow, or all connections are in use
log = logging.getLogger(__name__)
_counted: set[str] = set()
_refused_at: dict[str, float] = {}


def _refused(pool: "ConnectionPool[Any]") -> None:
    _refused_at[pool.name] = time.monotonic()


POOL: dict[str, Any] = {
    "min_size": 1,
    "timeout": LOOK_SECONDS,
    "reconnect_timeout": 0,  # tried twice at once, then not in the background: requests do that
    "reconnect_failed": _refused,
}


class DatabaseWrapper(base.DatabaseWrapper):
    SchemaEditorClass = SchemaEditor

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        options = settings_dict["OPTIONS"]
        options["pool"] = {**POOL, **options["pool"]}
        super().__init__(settings_dict, *args, **kwargs)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if self.pool is None:  # to make a database, when there is none to be pooled for
            return super().get_new_connection(conn_params)
        connection = self._from_pool(conn_params)
        try:
            ConnectionPool.check_connection(connection)
        except psycopg.Error:
            # The others were most likely broken together with it.
            self.pool.putconn(connection)
            self.pool.drain()
            connection = self._from_pool(conn_params)
        self._count_once(connection)
        return connection

    def _count_once(self, connection: Any) -> None:
        """Each process that lasts says at its first connection if it is one too many."""
        if room.ROLE and self.pool.name not in _counted:
            _counted.add(self.pool.name)
            try:
                if complaint := room.complaint(connection, self.pool.max_size):
                    log.warning(complaint)
            except psycopg.Error as error:
                log.warning("Connections could not be counted (%s).", type(error).__name__)

    def _from_pool(self, conn_params: dict[str, Any]) -> Any:
        started = time.monotonic()
        while True:
            try:
                return super().get_new_connection(conn_params)
            except PoolTimeout:
                waited = time.monotonic() - started
                refused = _refused_at.get(self.pool.name, 0.0) > started
                if waited > (REFUSED_SECONDS if refused else PATIENCE_SECONDS):
                    raise
