"""Whether PostgreSQL has room for every connection that the processes of a site may open."""

import os
import platform
from typing import Any

KEPT_FOR_STAFF = 5  # connections: PostgreSQL keeps three, and people look around with others
ROLE = os.environ.get("CHATSITE_ROLE", "")  # of a process that lasts (deploy/role.py)
# 63 characters at most; the end of a pod's name is what tells it from others.
NAME = f"chatsite {ROLE or 'command'} {platform.node()[-30:]} {os.getpid()}"
# A process that is lost, or frozen, in a transaction keeps its rows locked, from those who would
# take its runs over too; and who waits for a locked row keeps others. (setup may take longer.)
IDLE_SECONDS = 10
LOCK_SECONDS = {"pages": 5, "realtime": 5, "worker": 2}
COUNT = """
    SELECT current_setting('max_connections')::int, count(DISTINCT application_name)
    FROM pg_stat_activity WHERE application_name ~ '^chatsite (pages|realtime|worker) '
"""


def limits(more: str = "") -> dict[str, str]:
    """The options of a connection; `more`: those of the operator's, which win."""
    if ROLE not in LOCK_SECONDS:
        return {"options": more} if more else {}
    idle = f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s"
    return {"options": f"{idle} -c lock_timeout={LOCK_SECONDS[ROLE]}s {more}".strip()}


def processes(allowed: int, each: int) -> int:
    """How many may open `each` connections."""
    return (allowed - KEPT_FOR_STAFF) // each


def complaint(connection: Any, each: int) -> str:
    """What is wrong when those that are connected now may together want too many; else empty."""
    allowed, connected = connection.execute(COUNT).fetchone()
    if connected <= processes(allowed, each):
        return ""
    return (
        f"{connected} processes may open {each} connections to PostgreSQL each, and it allows "
        f"{allowed}: raise its max_connections or lower DATABASE_POOL."
    )
