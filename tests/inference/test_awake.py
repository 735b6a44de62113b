"""What keeps the cores awake during an evaluation takes nothing from anybody."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from inference.engines.llama_library import Context, Entry, Weights, kernels
from tests.contract.conftest import model_file

CORES = os.sched_getaffinity(0)
Evaluate = Callable[[int, int, float], None]

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not kernels(), reason="this llama.cpp was built without our kernels"),
    pytest.mark.skipif(len(CORES) == 1, reason="one core, which no thread waits for"),
]


def tasks() -> set[Path]:
    return set(Path("/proc/self/task").iterdir())


@pytest.fixture(scope="module")
def others() -> set[Path]:
    """This process's threads that evaluate nothing here."""
    return tasks()


@pytest.fixture(scope="module")
def evaluate(others: set[Path]) -> Iterator[Evaluate]:
    """Evaluates a token so many times, by so many threads, with a pause after each. In a thread
    that ends: OpenMP's helpers of it would take those of other tests from spinning."""
    weights = Weights(model_file(), lambda percent: None)
    context = Context(weights, 1, 64, 8)

    def work(times: int, threads: int, pause: float) -> None:
        context.use_threads(threads)
        for _ in range(times):
            context.decode([Entry(1, 0, 0, wanted=True)])
            context.forget(0, 0)
            time.sleep(pause)

    with ThreadPoolExecutor(1) as worker:
        worker.submit(work, 1, len(CORES), 0.0).result()
        yield lambda times, threads, pause: worker.submit(work, times, threads, pause).result()
        worker.submit(context.free).result()
    weights.free()


def awake() -> list[Path]:
    """The threads that keep a core awake, each of which comes within seconds."""
    deadline, found = time.monotonic() + 20, list[Path]()
    while len(found) < len(CORES):
        assert time.monotonic() < deadline
        found = []
        for task in tasks():
            with suppress(OSError):  # a thread that has just ended
                found += [task] if (task / "comm").read_text() == "awake\n" else []
    return found


def ticks() -> int:
    """Of processor time that they have used."""
    used = 0
    for task in awake():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used


def rested() -> int:
    """Their ticks, as soon as they use no more."""
    deadline, before = time.monotonic() + 20, -1
    while (now := ticks()) != before:
        assert time.monotonic() < deadline, "they turn without end"
        before = now
        time.sleep(0.3)
    return now


def test_there_is_one_of_the_lowest_class_for_each_core(evaluate: Evaluate):
    threads = [int(task.name) for task in awake()]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
    assert all(len(os.sched_getaffinity(thread)) == 1 for thread in threads)
    assert {min(os.sched_getaffinity(thread)) for thread in threads} == CORES


def places(of: set[Path]) -> list[int]:
    """The cores of those threads that are kept to one."""
    found = list[int]()
    for task in of:
        with suppress(OSError):  # a thread that has just ended
            cores = os.sched_getaffinity(int(task.name))
            found += cores if len(cores) == 1 else []
    return sorted(found)


def test_the_threads_that_evaluate_have_a_core_each(evaluate: Evaluate, others: set[Path]):
    evaluate(1, len(CORES), 0)
    assert places(tasks() - others - {*awake()}) == sorted(CORES)


def test_with_fewer_threads_than_cores_the_one_that_leads_may_go_anywhere_again(
    evaluate: Evaluate, others: set[Path]
):
    evaluate(1, len(CORES), 0)
    evaluate(1, 1, 0)
    assert len(places(tasks() - others - {*awake()})) == len(CORES) - 1  # helpers, which sleep


def test_they_turn_in_the_pauses_between_evaluations_and_then_sleep(evaluate: Evaluate):
    before, most = rested(), 0
    for _ in range(30):  # a busy machine leaves them less
        evaluate(100, len(CORES), 0.003)
        most = max(most, rested() - before)
        if most >= 5:  # hundredths of a second, of thirty on each core
            break
        before = rested()
    assert most >= 5


def test_a_model_that_leaves_cores_to_others_keeps_none_awake(evaluate: Evaluate):
    before = rested()
    evaluate(50, len(CORES) - 1, 0.003)
    assert rested() == before
