"""The grammar of JSON values: strings and arrays of given lengths, numbers in a range, objects.

`depth` of a value is the least number of levels it nests, infinite when nothing fits it. A
value is left out where there is no room for it, so that no text runs into a dead end.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

from inference.engines.grammar import Either, Elements, Rule, Switch

DIGITS = 15  # significant ones: a double tells all such numbers apart
UNIT = 10**DIGITS  # numbers are compared as whole multiples of 1/UNIT
EVERYTHING = (-(10**31), 10**31)
INDENT = 20


def json_bytes(value: Any) -> bytes:
    """Compact JSON. Raises UnicodeEncodeError for half a surrogate pair."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def switch(*cases: tuple[str, Elements]) -> Switch:
    """Cases are ranges of bytes, such as "09af" for 0 to 9 and a to f, and what follows."""
    return Switch(
        {
            byte: then
            for ranges, then in cases
            for low, high in zip(ranges[::2], ranges[1::2], strict=True)
            for byte in range(ord(low), ord(high) + 1)
        }
    )


class Words(Switch):
    """One of several texts, none of them empty, each with what follows it."""

    def __init__(self, words: Sequence[tuple[bytes, Elements]]) -> None:
        self._words = words

    @cached_property
    def follow(self) -> Mapping[int, Elements]:  # type: ignore[override]
        groups: dict[int, list[tuple[bytes, Elements]]] = {}
        for word, then in self._words:
            groups.setdefault(word[0], []).append((word[1:], then))
        return {byte: _rest(words) for byte, words in groups.items()}


def _rest(words: Sequence[tuple[bytes, Elements]]) -> Elements:
    ended = [then for word, then in words if not word]
    going = [(word, then) for word, then in words if word]
    if not ended:
        return (Words(going),)
    if len(ended) == 1 and not going:
        return ended[0]
    return (Either(*ended, *([(Words(going),)] if going else [])),)


@dataclass(frozen=True)
class Spaces(Rule):
    most: int

    def sequences(self, room: int) -> Sequence[Elements]:
        return [(), (SPACE, Spaces(self.most - 1))] if self.most else [()]


SPACE, COMMA, QUOTE, COLON = (switch((sign * 2, ())) for sign in ' ,":')
OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY = (switch((sign * 2, ())) for sign in "{}[]")
GAP = Either((), (SPACE,))
# As people write it: nothing, one space, or a new line with its indent. Not more: a small
# model would write blanks for ever.
BLANK = Either((), (SPACE,), (switch(("\n\n", ())), Spaces(INDENT)))

TAIL = switch(("\x80\xbf", ()))
HEX = switch(("09afAF", ()))
# Half a surrogate pair is no character, and a pair of escapes would count as two.
UNICODE = switch(("09acACefEF", (HEX, HEX, HEX)), ("ddDD", (switch(("07", (HEX, HEX))),)))
ESCAPED = switch(('""\\\\//bbffnnrrtt', ()), ("uu", (UNICODE,)))
CHARACTER = switch(
    (" !#[]~", ()),
    ("\\\\", (ESCAPED,)),
    ("\xc2\xdf", (TAIL,)),
    ("\xe0\xe0", (switch(("\xa0\xbf", ())), TAIL)),
    ("\xe1\xec\xee\xef", (TAIL, TAIL)),
    ("\xed\xed", (switch(("\x80\x9f", ())), TAIL)),
    ("\xf0\xf0", (switch(("\x90\xbf", ())), TAIL, TAIL)),
    ("\xf1\xf3", (TAIL, TAIL, TAIL)),
    ("\xf4\xf4", (switch(("\x80\x8f", ())), TAIL, TAIL)),
)
DIGIT = switch(("09", ()))
EXPONENT = switch(("eeEE", (Either((), (switch(("++--", ())),)), DIGIT, Either((), (DIGIT,)))))


class Value(Rule):
    depth: float = inf

    def least_depth(self) -> float:
        """Computed from the values in this one."""
        return 0

    def sequences(self, room: int) -> Sequence[Elements]:
        return self.forms() if self.depth <= room else ()

    def forms(self) -> Sequence[Elements]:
        raise NotImplementedError


class AnyOf(Value):
    def __init__(self) -> None:
        self.options: list[Value] = []

    def least_depth(self) -> float:
        return min((option.depth for option in self.options), default=inf)

    def forms(self) -> Sequence[Elements]:
        return [(option,) for option in self.options]


class Literals(Value):
    def __init__(self, values: Sequence[Any]) -> None:
        self._words = Words([(json_bytes(value), ()) for value in values])
        self._is_empty = not values

    def least_depth(self) -> float:
        return inf if self._is_empty else 0

    def forms(self) -> Sequence[Elements]:
        return [(self._words,)]


# --- strings --------------------------------------------------------------------------------
class String(Value):
    def __init__(self, least: int = 0, most: int | None = None) -> None:
        self._least, self._most = least, most

    def least_depth(self) -> float:
        return 0 if self._most is None or self._least <= self._most else inf

    def forms(self) -> Sequence[Elements]:
        return [(QUOTE, Characters(self._least, self._most))]


@dataclass(frozen=True)
class Characters(Rule):
    """What is left of a string, its end included."""

    least: int
    most: int | None

    def sequences(self, room: int) -> Sequence[Elements]:
        ends: list[Elements] = [] if self.least else [(QUOTE,)]
        if self.most == 0:
            return ends
        most = None if self.most is None else self.most - 1
        return [*ends, (CHARACTER, Characters(max(self.least - 1, 0), most))]


# --- numbers --------------------------------------------------------------------------------
class Number(Value):
    """Between two bounds, both allowed, in multiples of 1/UNIT."""

    def __init__(self, low: int, high: int, whole: bool) -> None:
        self._start = Digits(low, high, whole)
        self._depth = 0 if self._start.next_signs() else inf  # asked for again and again

    def least_depth(self) -> float:
        return self._depth

    def forms(self) -> Sequence[Elements]:
        return [(self._start,)]


@dataclass(frozen=True)
class Digits(Rule):
    """A number of which `text` is written; it goes on only towards the numbers allowed."""

    low: int
    high: int
    whole: bool
    text: str = ""

    def sequences(self, room: int) -> Sequence[Elements]:
        ends: list[Elements] = [()] if self._is_allowed() else []
        if ends and not self.whole and (self.low, self.high) == EVERYTHING:
            ends.append((EXPONENT,))
        signs = self.next_signs()
        if signs:
            ends.append((Switch({ord(sign): (self._with(sign),) for sign in signs}),))
        return ends

    def next_signs(self) -> str:
        return "".join(sign for sign in self._signs() if self._with(sign)._leads_somewhere())

    def _with(self, sign: str) -> "Digits":
        return Digits(self.low, self.high, self.whole, self.text + sign)

    def _parts(self) -> tuple[str, str, str]:
        return self.text.lstrip("-").partition(".")

    def _signs(self) -> str:
        before, point, after = self._parts()
        if not before:
            return "0123456789" if self.text else "-0123456789"
        if len(before) + len(after) == DIGITS:
            return ""
        digits = "0123456789" if point or before != "0" else ""
        return digits if point or self.whole else digits + "."

    def _range(self) -> tuple[int, int]:
        """What the digits without the sign may come to."""
        return (-self.high, -self.low) if self.text[:1] == "-" else (self.low, self.high)

    def _is_allowed(self) -> bool:
        before, point, after = self._parts()
        low, high = self._range()
        complete = before and bool(point) == bool(after)
        return bool(complete) and low <= int(before + after) * 10 ** (DIGITS - len(after)) <= high

    def _leads_somewhere(self) -> bool:
        """Whether some number that is allowed begins this way."""
        before, point, after = self._parts()
        if not before:
            return bool(self.next_signs())
        if point:
            size = 10 ** (DIGITS - len(after))
            return self._reaches(int(before + after) * size, size, 10 ** len(before))
        more = range(DIGITS - len(before) + 1 if before != "0" else 1)
        sizes = ((10**count * UNIT, 10 ** (len(before) + count)) for count in more)
        return any(
            self._reaches(int(before) * size, size, UNIT if self.whole else step)
            for size, step in sizes
        )

    def _reaches(self, first: int, size: int, step: int) -> bool:
        """Whether a multiple of `step` in [first, first + size) is in range."""
        low, high = self._range()
        low, high = max(low, first), min(high, first + size - 1)
        return -(-low // step) * step <= high


# --- arrays ---------------------------------------------------------------------------------
class Array(Value):
    """`prefix`: the first items' values; `item`: all others', None for no others."""

    def __init__(self, least: int, most: int | None) -> None:
        self.least, self.most = least, most
        self.prefix: list[Value] = []
        self.item: Value | None = None

    def least_depth(self) -> float:
        if self.most is not None and self.most < self.least:
            return inf
        needed = [*range(min(self.least, len(self.prefix))), self.least - 1]
        values = [self.at(index) for index in needed if index >= 0]
        return 1 + max((value.depth if value else inf for value in values), default=0)

    def at(self, index: int) -> Value | None:
        if self.most is not None and index >= self.most:
            return None
        return self.prefix[index] if index < len(self.prefix) else self.item

    def after(self, index: int) -> int:
        """The next index; one for all where they make no difference any more."""
        same = max(self.least, len(self.prefix), 1)
        return index + 1 if self.most is not None else min(index + 1, same)

    def forms(self) -> Sequence[Elements]:
        return [(OPEN_ARRAY, Items(self, 0))]


@dataclass(frozen=True)
class Items(Rule):
    """What is left of an array from an item on, its end included."""

    array: Array
    index: int
    nests = True

    def sequences(self, room: int) -> Sequence[Elements]:
        array, index = self.array, self.index
        ends: list[Elements] = [(BLANK, CLOSE_ARRAY)] if index >= array.least else []
        value = array.at(index)
        if value is None or value.depth > room:
            return ends
        lead: Elements = (COMMA, BLANK) if index else (BLANK,)
        return [*ends, (*lead, value, Items(array, array.after(index)))]


# --- objects --------------------------------------------------------------------------------
class Map(Value):
    """An object with any keys; `value` None: none at all."""

    def __init__(self) -> None:
        self.value: Value | None = None

    def least_depth(self) -> float:
        return 1

    def forms(self) -> Sequence[Elements]:
        return [(OPEN_OBJECT, Entries(self, first=True))]


@dataclass(frozen=True)
class Entries(Rule):
    """What is left of a map from an entry on, its end included."""

    map: Map
    first: bool
    nests = True

    def sequences(self, room: int) -> Sequence[Elements]:
        value = self.map.value
        if value is None or value.depth > room:
            return [(BLANK, CLOSE_OBJECT)]
        lead: Elements = (BLANK,) if self.first else (COMMA, BLANK)
        entry = (QUOTE, Characters(0, None), COLON, GAP, value, Entries(self.map, first=False))
        return [(BLANK, CLOSE_OBJECT), (*lead, *entry)]


@dataclass(frozen=True)
class Property:
    key: bytes  # with its quotes and colon
    value: Value
    required: bool


class Object(Value):
    """An object with these properties, in this order."""

    def __init__(self) -> None:
        self.properties: list[Property] = []
        self._keys: dict[tuple[int, int], Words | None] = {}

    def least_depth(self) -> float:
        return 1 + max((p.value.depth for p in self.properties if p.required), default=0)

    def forms(self) -> Sequence[Elements]:
        return [(OPEN_OBJECT, Members(self, 0, first=True))]

    def may_end(self, index: int) -> bool:
        return not any(each.required for each in self.properties[index:])

    def keys(self, index: int, room: int) -> Words | None:
        """The keys that may come from a property on: up to the next that has to."""
        if (index, room) not in self._keys:
            words: list[tuple[bytes, Elements]] = []
            for number, each in enumerate(self.properties[index:], index):
                if each.value.depth <= room:
                    rest = Members(self, number + 1, first=False)
                    words.append((each.key, (GAP, each.value, rest)))
                if each.required:
                    break
            self._keys[index, room] = Words(words) if words else None
        return self._keys[index, room]


@dataclass(frozen=True)
class Members(Rule):
    """What is left of an object from a property on, its end included."""

    object: Object
    index: int
    first: bool
    nests = True

    def sequences(self, room: int) -> Sequence[Elements]:
        may_end = self.object.may_end(self.index)
        ends: list[Elements] = [(BLANK, CLOSE_OBJECT)] if may_end else []
        keys = self.object.keys(self.index, room)
        if keys is None:
            return ends
        lead: Elements = (BLANK,) if self.first else (COMMA, BLANK)
        return [*ends, (*lead, keys)]


def anything() -> list[Value]:
    """A value of any kind, first, and all values in it."""
    value, objects, arrays = AnyOf(), Map(), Array(0, None)
    objects.value = arrays.item = value
    kinds = [objects, arrays, String(), Number(*EVERYTHING, whole=False)]
    value.options = [*kinds, Literals([True, False, None])]
    return [value, *value.options]
