"""The sequences of the cache, what each holds, and which of them a run gets."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.engines.runs import Run

WORTH_COPYING = 32  # tokens; copying a sequence costs about as much as evaluating half of them


@dataclass(slots=True)
class Slot:
    """One sequence of the cache. It keeps what it holds after its run has ended.

    shared: how many of the first tokens are the operator's own words, for everybody to reuse.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    scope: str = ""
    shared: int = 0
    run: "Run | None" = None
    used_at: float = 0.0

    def serves(self, run: "Run") -> int:
        """How many of the run's first tokens are evaluated here and may be used by it.

        The last one is always left to evaluate: its values are what the run waits for.
        """
        same = common(self.tokens, run.inputs[:-1])
        if run.scope and run.scope == self.scope:
            return same
        return min(same, self.shared, run.shared)

    def free(self) -> None:
        self.run = None
        self.used_at = time.monotonic()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run goes, and how many tokens of which slot serve it."""

    slot: Slot
    source: Slot
    kept: int


def place(run: "Run", slots: Sequence[Slot]) -> Place | None:
    """The best free slot for a run; None when all are taken.

    A free slot that holds the run's beginning is best; else a beginning worth it is copied
    from any slot, also from one at work.
    """
    free = [slot for slot in slots if slot.run is None]
    if not free:
        return None
    serves = {slot.number: slot.serves(run) for slot in slots}
    home = max(free, key=lambda slot: (serves[slot.number], -slot.used_at))
    source = max(slots, key=lambda slot: serves[slot.number])
    kept = serves[home.number]
    if serves[source.number] >= kept + WORTH_COPYING:
        return Place(_least_missed(free, slots), source, serves[source.number])
    if kept < WORTH_COPYING:
        home = _least_missed(free, slots)
    return Place(home, home, serves[home.number])


def _least_missed(free: Sequence[Slot], slots: Sequence[Slot]) -> Slot:
    """The stalest free slot beside one at work, if there is one.

    llama.cpp evaluates neighbouring sequences in one go; every gap costs another pass over
    the weights (four sequences with gaps took 1.5 times as long as four without).
    """
    busy = {slot.number for slot in slots if slot.run}

    def makes_a_gap(slot: Slot) -> bool:
        return bool(busy) and not {slot.number - 1, slot.number + 1} & busy

    return min(free, key=lambda slot: (makes_a_gap(slot), slot.used_at, slot.number))


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
