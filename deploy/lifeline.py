"""A process of ours ends with whoever started it, even if that one was killed.

CHATSITE_LIFELINE is the reading end of a pipe; it ends when its writer does.
"""

import os
import select
import signal
import threading


def follow() -> None:
    """SIGTERM to this process then. Nothing without a lifeline."""
    if lifeline := os.environ.get("CHATSITE_LIFELINE"):
        threading.Thread(target=_wait, args=(int(lifeline),), daemon=True).start()


def _wait(lifeline: int) -> None:
    # A read would not wait: workers share the pipe, and have made it one that nobody waits for.
    line = select.poll()
    line.register(lifeline, select.POLLIN)
    line.poll()
    os.kill(os.getpid(), signal.SIGTERM)
