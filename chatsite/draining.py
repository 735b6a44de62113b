"""What a web process does first when it is told to end."""

from chats import consumers
from chatsite import health


def begin_draining() -> None:
    """Turn unready and ask every open socket to reconnect (close code 1012)."""
    health.draining.set()
    consumers.close_all(1012)
