"""How many threads a call of llama.cpp gets: measured at start, and again while it works.

The threads of one call meet at a barrier after every node of the graph, so a neighbour that
takes one thread's core away holds up the others. What is fastest therefore changes with the
neighbours; where there is no OpenMP, a hundredfold. Trying another count costs no exactness:
the results are the same to the bit whatever the count (docs/architecture.md).
"""

import os
import time
from collections.abc import Callable
from statistics import median

TRIAL_CALLS = 3  # of each of the two counts compared
SOONEST, LATEST = 1.0, 30.0  # seconds between two trials; longer after each that changed nothing
HOPELESS = 2.0  # times as slow as now: no second call needed
BETTER = 0.9  # of the time now: worth a change
SLOW_CALLS = 2
SWITCH_SECONDS = 0.0005  # how long the decode thread may wait for others' Python, not 5 ms


def counts() -> list[int]:
    """1, 2, 4, … up to the cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    return sorted({min(1 << power, cores) for power in range(8)})


class Threads:
    """The count for one kind of call. Used by the decode thread alone."""

    def __init__(self, options: list[int]) -> None:
        self._options = options
        self.count = options[0]
        self._times: dict[int, list[float]] = {}  # of the trial under way, by count
        self._other: int | None = None  # what the trial tries
        self._rows = 0  # calls of another size are not compared
        self._next_is_lower = True
        self._pause = SOONEST
        self._due = 0.0
        self._usual: dict[int, float] = {}  # seconds of a call, by its rows
        self._slow = 0  # calls in a row that took much longer than usual

    def calibrate(self, seconds: Callable[[int], float]) -> None:
        """Take the count for which `seconds` is least; it is asked twice for those that may win."""
        if len(self._options) == 1:
            return
        times = {count: seconds(count) for count in self._options}
        near = HOPELESS * min(times.values())
        for count, first in times.items():
            if first < near:
                times[count] = min(first, seconds(count))
        self.count = min(times, key=times.__getitem__)
        if self.count == self._options[-1]:  # nothing better to hope for; neighbours are noticed
            self._pause = LATEST
            self._due = time.monotonic() + LATEST

    def next(self) -> int:
        """The count for the next call."""
        if self._other is None and len(self._options) > 1 and time.monotonic() >= self._due:
            self._begin()
        if self._other is None:
            return self.count
        mine, others = (len(self._times[count]) for count in (self.count, self._other))
        return self.count if mine <= others else self._other

    def took(self, count: int, rows: int, seconds: float) -> None:
        """Tell how long a call of `rows` tokens took with `count` threads.

        Only calls of equally many are compared.
        """
        if self._other is None:
            self._watch(rows, seconds)
            return
        if rows != self._rows:
            self._rows = rows
            self._times = {self.count: [], self._other: []}
        self._times[count].append(seconds)
        self._judge()

    def _watch(self, rows: int, seconds: float) -> None:
        """When calls have become slow, a neighbour has come: do not wait until a trial is due."""
        usual = self._usual.setdefault(rows, seconds)
        self._usual[rows] += 0.05 * (min(seconds, HOPELESS * usual) - usual)
        self._slow = self._slow + 1 if seconds > HOPELESS * usual else 0
        if self._slow == SLOW_CALLS:
            self._due, self._next_is_lower = 0.0, True

    def _begin(self) -> None:
        place = self._options.index(self.count)
        lower, higher = self._options[:place][-1:], self._options[place + 1 :][:1]
        either = lower + higher
        wanted = lower if self._next_is_lower else higher
        self._other = (wanted or either)[0]
        self._next_is_lower = not self._next_is_lower
        self._slow = 0
        self._times = {self.count: [], self._other: []}

    def _judge(self) -> None:
        assert self._other is not None
        mine, others = self._times[self.count], self._times[self._other]
        if not mine or not others:
            return
        ratio = median(others) / median(mine)
        if len(others) >= TRIAL_CALLS or ratio > HOPELESS or ratio < 1 / HOPELESS:
            self._end(ratio < BETTER)

    def _end(self, won: bool) -> None:
        if won and self._other is not None:
            self.count = self._other
            self._usual.clear()
        self._pause = SOONEST if won else min(2 * self._pause, LATEST)
        self._due = time.monotonic() + self._pause
        self._other = None
