"""Server-sent events out of bytes, however the network cut them."""

import codecs
import re

MAX_EVENT_CHARACTERS = 1 << 20
_LINE = re.compile("\r\n|\n|\r")


class Garbled(Exception):
    """The bytes cannot be what they should be; reads after "The model's server"."""


class EventParser:
    """Feed it bytes, get the data of every event they complete. Comments are left out.

    Lines end in CR, LF or both; the `data` lines of one event are joined by LF; other fields
    (`event`, `id`, `retry`) mean nothing to us. Raises Garbled for an event without end.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._rest = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[str]:
        text = self._rest + self._decoder.decode(data)
        # A CR at the very end may be half of a CR LF.
        held = "\r" if text.endswith("\r") else ""
        *lines, rest = _LINE.split(text.removesuffix("\r") if held else text)
        self._rest = rest + held
        events = [event for line in lines if (event := self._take(line)) is not None]
        if self._size + len(self._rest) > MAX_EVENT_CHARACTERS:
            raise Garbled("sent an event without end")
        return events

    def _take(self, line: str) -> str | None:
        """The event that this line ends, if it ends one with data in it."""
        if not line:
            event, self._data, self._size = self._data, [], 0
            return "\n".join(event) or None
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
            self._size += len(value)
        return None
