"""Which bytes may come next in a text that has to follow a grammar.

A grammar is made of elements: a `Switch` reads one byte, a `Rule` stands for one of several
sequences of elements. They are expanded as the text is read, never all at once, so counts and
recursion cost nothing before they are met. What has been seen is remembered as a table of
states: walking known ground is one dictionary look-up a byte.

Written in Python and not handed to llama.cpp's grammar sampler: that one ends the process on a
token it did not expect, and takes unbounded time for some schemas (docs/architecture.md).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from inference.engines.errors import RequestRefused

DEPTH = 64  # levels of nesting
WIDTH = 64  # readings of the same text kept apart; a text with more may not come
WORK = 20_000  # steps found out anew for one token
STATES = 4_000  # remembered

Elements = tuple["Element", ...]


class TooComplex(RequestRefused):
    """The same text can be read in too many ways at once."""

    def __init__(self) -> None:
        super().__init__("json_schema can be read in too many ways at once.")


class Element:
    """`nests`: whatever is above this one on the stack is one level deeper."""

    nests = False


class Switch(Element):
    """Reads one byte; what has to follow depends on it. Other bytes are wrong."""

    def __init__(self, follow: Mapping[int, Elements]) -> None:
        self.follow = follow


class Rule(Element):
    def sequences(self, room: int) -> Sequence[Elements]:
        """What this may stand for, with `room` levels of nesting left."""
        raise NotImplementedError


class Either(Rule):
    def __init__(self, *options: Elements) -> None:
        self.options = options

    def sequences(self, room: int) -> Sequence[Elements]:
        return self.options


class Reading:
    """How far one text has come in a grammar. Not for two threads at once.

    A stack is what is still to be read: its top element and the stack below, which is
    number 0 when nothing is. A state is the set of stacks the text so far may have led to;
    state 0 is the empty set, where wrong texts lead. Raises TooComplex.
    """

    def __init__(self, start: Element) -> None:
        self._begin([(start,)])

    def _begin(self, stacks: Sequence[Elements]) -> None:
        self._stacks: list[tuple[Element | None, int, int]] = [(None, 0, 0)]
        self._stack_numbers: dict[tuple[Element, int], int] = {}
        self._settled: dict[int, frozenset[int]] = {0: frozenset([0])}
        self._states: list[frozenset[int]] = [frozenset()]
        self._state_numbers: dict[frozenset[int], int] = {frozenset(): 0}
        self._next: dict[int, int] = {}
        self._work = 0
        settled = [self._settle(self._push(elements, 0)) for elements in stacks]
        self._state = self._number(frozenset().union(*settled))
        if not self._state:
            raise TooComplex

    @property
    def may_end(self) -> bool:
        return 0 in self._states[self._state]

    @property
    def must_end(self) -> bool:
        return self._states[self._state] == {0}

    def allows(self, text: bytes) -> bool:
        """Whether this may come next. Raises TooComplex."""
        return bool(self._walk(text))

    def accept(self, text: bytes) -> bool:
        """Go on by this text; False, and no step made, where it may not come next."""
        state = self._walk(text)
        if state:
            self._state, self._work = state, 0
            if len(self._states) > STATES:
                self._forget()
        return bool(state)

    def allowed(self, texts: Sequence[bytes]) -> list[int]:
        """The indexes of those of these sorted texts that may come next. Raises TooComplex."""
        found = []
        index = 0
        while index < len(texts):
            read = self._length_read(texts[index])
            if read == len(texts[index]):
                found.append(index)
                index += 1
            else:  # all that begin the same way are as wrong
                index = bisect_left(texts, _after(texts[index][: read + 1]), index + 1)
        return found

    def _length_read(self, text: bytes) -> int:
        state = self._state
        for position, byte in enumerate(text):
            state = self._step(state, byte)
            if not state:
                return position
        return len(text)

    def _walk(self, text: bytes) -> int:
        state = self._state
        for byte in text:
            state = self._step(state, byte)
            if not state:
                break
        return state

    def _step(self, state: int, byte: int) -> int:
        key = state << 8 | byte
        known = self._next.get(key)
        if known is None:
            known = self._next[key] = self._new_step(state, byte)
        return known

    def _new_step(self, state: int, byte: int) -> int:
        stacks: set[int] = set()
        for stack in self._states[state]:
            top, below, _ = self._stacks[stack]
            if isinstance(top, Switch) and (follow := top.follow.get(byte)) is not None:
                stacks |= self._settle(self._push(follow, below))
        self._count_work(1 + len(stacks))
        return self._number(frozenset(stacks))

    def _settle(self, stack: int) -> frozenset[int]:
        """The stacks with a Switch on top, or empty, that this one may stand for."""
        settled = self._settled.get(stack)
        if settled is None:
            seen, todo, ready = {stack}, [stack], set()
            while todo:
                one = todo.pop()
                top, below, depth = self._stacks[one]
                if not isinstance(top, Rule):
                    ready.add(one)
                    continue
                new = {self._push(each, below) for each in top.sequences(DEPTH - depth)} - seen
                self._count_work(len(new))
                seen |= new
                todo.extend(new)
            settled = self._settled[stack] = frozenset(ready)
        return settled

    def _push(self, elements: Elements, below: int) -> int:
        for element in reversed(elements):
            key = (element, below)
            number = self._stack_numbers.get(key)
            if number is None:
                number = self._stack_numbers[key] = len(self._stacks)
                self._stacks.append((element, below, self._stacks[below][2] + element.nests))
            below = number
        return below

    def _number(self, state: frozenset[int]) -> int:
        if len(state) > WIDTH:
            return 0
        number = self._state_numbers.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
        return number

    def _count_work(self, amount: int) -> None:
        self._work += amount
        if self._work > WORK:
            raise TooComplex

    def _forget(self) -> None:
        """Begin the tables anew with nothing but where the text is."""
        self._begin([self._elements(stack) for stack in self._states[self._state]])

    def _elements(self, stack: int) -> Elements:
        elements = []
        while stack:
            top, stack, _ = self._stacks[stack]
            assert top is not None
            elements.append(top)
        return tuple(elements)


def _after(prefix: bytes) -> bytes:
    """The first text, in order, that is greater than all that begin with this."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\xff" * 1024
