"""Log lines: one event, one line, nothing a stranger can forge."""

import logging
import time
from http import HTTPStatus


class OneLine(logging.Formatter):
    """Escapes control characters of the message: no forged lines, no terminal codes.

    A traceback of our own keeps its lines, indented under the event.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
            for char in record.message
        )
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        # A stranger asked by another site's name, for too much, or for nothing that can be read:
        # a line says it all.
        is_bad_request = getattr(record, "status_code", None) == HTTPStatus.BAD_REQUEST
        if is_bad_request or record.name.startswith("django.security."):
            record.exc_info = record.exc_text = None
        return super().format(record)

    def formatException(self, ei: "logging._SysExcInfoType") -> str:  # noqa: N802
        return "\n".join(f"    {line}" for line in super().formatException(ei).splitlines())


class NowAndThen(logging.Filter):
    """Lets a message of each kind through once in so many seconds; what varies in it is no kind."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._told_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, kind = time.monotonic(), str(record.msg)
        if now - self._told_at.get(kind, -self._seconds) < self._seconds:
            return False
        self._told_at[kind] = now
        return True


class OnPurpose(logging.Filter):
    """A 503 that no error made is a warning: too busy, no model, not ready."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_unavailable = getattr(record, "status_code", None) == HTTPStatus.SERVICE_UNAVAILABLE
        if is_unavailable and not record.exc_info:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
