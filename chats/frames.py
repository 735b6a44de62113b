"""The frames a reader may send, checked before anything is done with them."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

PROTOCOL = 1  # of all frames, both ways; static/js/socket.js has the page's
OLDEST = 1  # while a release is rolled out, pages of the one before are open
MAX_FRAME_BYTES = 16 * 1024
MAX_NUMBER = 2**31 - 1


class Malformed(Exception):
    """Not a frame of the protocol."""


@dataclass(frozen=True, slots=True)
class Watch:
    generation: UUID
    epoch: int
    after: int


@dataclass(frozen=True, slots=True)
class Unwatch:
    generation: UUID


@dataclass(frozen=True, slots=True)
class WatchChat:
    chat: UUID
    version: int


@dataclass(frozen=True, slots=True)
class Ping:
    pass


ClientFrame = Watch | Unwatch | WatchChat | Ping
FRAMES: dict[str, type[ClientFrame]] = {
    "watch": Watch,
    "unwatch": Unwatch,
    "watch_chat": WatchChat,
    "ping": Ping,
}


def parse(text: str) -> ClientFrame:
    """The frame in `text`; unknown members are ignored. Raises Malformed."""
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Malformed("A frame must be a JSON object.") from error
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in FRAMES:
        raise Malformed("Unknown type of frame.")
    frame = FRAMES[kind]
    kinds = frame.__annotations__
    return frame(**{name: CHECKS[kind](data.get(name)) for name, kind in kinds.items()})


def stated_protocol(query: bytes) -> int:
    """What a page says it speaks, in the address of its socket; the first ones said nothing."""
    [stated] = parse_qs(query.decode("latin-1")).get("protocol", ["1"])[:1]
    return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 6 else 1


def spoken_protocol(stated: int) -> int:
    """The newest that both know. Newer than `stated`: it is too old, and has to be loaded anew."""
    return min(stated, PROTOCOL) if stated >= OLDEST else PROTOCOL


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _uuid(value: object) -> UUID:
    if not isinstance(value, str) or len(value) != 36:
        raise Malformed("An id must be a UUID.")
    try:
        return UUID(value)
    except ValueError as error:
        raise Malformed("An id must be a UUID.") from error


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise Malformed("A position must be a whole number from 0.")
    return value


CHECKS: dict[Any, Any] = {UUID: _uuid, int: _number}
