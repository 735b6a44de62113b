"""What a web process does first when it is told to end."""

from chats import consumers
from chatsite import health

SOCKETS_PER_SECOND = 200  # reconnects are spread, so that whoever gets them is not flooded
MOST_SECONDS = 10.0  # gunicorn kills later than that: deploy/gunicorn.conf.py


async def begin_draining() -> None:
    """Turn unready and ask every open socket to reconnect (close code 1012)."""
    health.draining.set()
    spread = len(consumers.open_sockets) / SOCKETS_PER_SECOND
    await consumers.close_all(min(spread, MOST_SECONDS))
