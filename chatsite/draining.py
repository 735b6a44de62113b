"""What a web process does first when it is told to end."""

import asyncio
import contextlib

from chats import consumers
from chatsite import health

SOCKETS_PER_SECOND = 200  # reconnects are spread, so that whoever gets them is not flooded
MOST_SECONDS = 10.0
GOODBYE_SECONDS = 1.0  # for the last of them to take what is on its way; then its line is cut


async def begin_draining() -> None:
    """Turn unready and ask every open socket to reconnect (close code 1012).

    New ones are sent on by deploy/sockets.py. gunicorn kills later: deploy/gunicorn.conf.py.
    """
    health.draining.set()
    spread = min(len(consumers.open_sockets) / SOCKETS_PER_SECOND, MOST_SECONDS)
    most = spread + consumers.LAST_LOOK_SECONDS + GOODBYE_SECONDS
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(consumers.close_all(spread), most)
