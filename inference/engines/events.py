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
    What is not UTF-8 cannot be encoded again, so that whoever gets the event can refuse it.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._begun: list[str] = []  # pieces of the line that has not ended
        self._held = ""  # a CR at the very end, which may be half of a CR LF
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> list[str]:
        text = self._held + self._decoder.decode(data)
        self._held = "\r" if text.endswith("\r") else ""
        first, *others = _LINE.split(text.removesuffix("\r") if self._held else text)
        self._begin(first)
        events = []
        for begun in others:
            event = self._take("".join(self._begun))
            events += [] if event is None else [event]
            self._size -= sum(map(len, self._begun))
            self._begun = []
            self._begin(begun)
        return events

    def _begin(self, piece: str) -> None:
        self._begun.append(piece)
        self._size += len(piece)
        if self._size > MAX_EVENT_CHARACTERS:
            raise Garbled("sent an event without end")

    def _take(self, line: str) -> str | None:
        """The event that this line ends, if it ends one with data in it."""
        if not line:
            event, self._data, self._size = self._data, [], 0
            return "\n".join(event) or None
        field, _, value = line.partition(":")
        if field == "data":
            self._data.append(value.removeprefix(" "))
            self._size += len(value) + 1
        return None
