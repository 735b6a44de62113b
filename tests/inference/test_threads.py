"""The thread count follows the machine while the engine works."""

import pytest

from inference.engines.threads import Threads


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("inference.engines.threads.time.monotonic", lambda: now[0])
    return now


def work(threads: Threads, clock: list[float], seconds: dict[int, float], calls: int) -> list[int]:
    used = []
    for _ in range(calls):
        count = threads.next()
        threads.took(count, 1, seconds[count])
        clock[0] += seconds[count]
        used.append(count)
    return used


def test_the_fastest_count_at_start_is_taken():
    threads = Threads([1, 2, 4])
    threads.calibrate({1: 0.4, 2: 0.2, 4: 0.3}.__getitem__)
    assert threads.count == 2


def test_on_a_quiet_machine_nothing_else_is_tried_for_half_a_minute(clock: list[float]):
    threads = Threads([1, 2])
    times = {1: 0.010, 2: 0.006}
    threads.calibrate(times.__getitem__)
    assert work(threads, clock, times, 4000) == [2] * 4000


def test_neighbours_that_come_bring_the_count_down_at_once(clock: list[float]):
    threads = Threads([1, 2])
    threads.count = 2
    work(threads, clock, {1: 0.010, 2: 0.006}, 400)
    assert threads.count == 2
    work(threads, clock, {1: 0.015, 2: 0.300}, 8)
    assert threads.count == 1


def test_neighbours_that_go_let_the_count_rise_again(clock: list[float]):
    threads = Threads([1, 2])
    work(threads, clock, {1: 0.015, 2: 0.300}, 3000)
    assert threads.count == 1
    work(threads, clock, {1: 0.010, 2: 0.006}, 4000)
    assert threads.count == 2


def test_trying_a_hopeless_count_costs_little(clock: list[float]):
    threads = Threads([1, 2])
    used = work(threads, clock, {1: 0.010, 2: 0.300}, 6000)
    assert used.count(2) * 0.300 < 0.1 * used.count(1) * 0.010


def test_a_count_that_was_set_is_never_changed(clock: list[float]):
    threads = Threads([3])
    assert work(threads, clock, {3: 0.01}, 500) == [3] * 500
