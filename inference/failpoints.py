"""Named places in the write path where a test can make a process die, wait or fail.

FAILPOINT="after_append@3:kill" kills this process (SIGKILL) at the third hit of
`after_append`; actions: kill, raise, sleep=SECONDS. Several are separated by commas.
Empty in production, where a hit costs one look at an empty dictionary.
"""

import os
import signal
import time
from collections import Counter


def _parse(text: str) -> dict[str, tuple[int, str]]:
    points = {}
    for part in filter(None, text.split(",")):
        name, _, action = part.partition(":")
        name, _, nth = name.partition("@")
        points[name] = (int(nth or 1), action)
    return points


_points = _parse(os.environ.get("FAILPOINT", ""))
_hits: Counter[str] = Counter()


def arm(text: str) -> None:
    """Set the failpoints of this process, for a test that starts it by other means."""
    _points.clear()
    _points.update(_parse(text))
    _hits.clear()


def is_set(name: str) -> bool:
    return name in _points


def hit(name: str) -> None:
    if name not in _points:
        return
    _hits[name] += 1
    nth, action = _points[name]
    if _hits[name] == nth:
        _act(action)


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action.startswith("sleep="):
        time.sleep(float(action.removeprefix("sleep=")))
    else:
        raise RuntimeError(f"failpoint: {action}")
