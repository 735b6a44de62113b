"""What keeps the cores awake during an evaluation takes nothing from anybody."""

import os
import time
from pathlib import Path

import pytest

from inference.engines.llama_library import Context, Entry, Weights, kernels
from tests.contract.conftest import model_file

CORES = os.sched_getaffinity(0)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(not kernels(), reason="this llama.cpp was built without our kernels"),
    pytest.mark.skipif(len(CORES) == 1, reason="one core, which no thread waits for"),
]


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(Weights(model_file(), lambda percent: None), 1, 64, 8)


def awake() -> list[Path]:
    tasks = Path("/proc/self/task").iterdir()
    return [task for task in tasks if (task / "comm").read_text() == "awake\n"]


def ticks(task: Path) -> int:
    """Of processor time that a thread has used."""
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_there_is_one_of_the_lowest_class_for_each_core(context: Context):
    context.seconds(len(CORES), 1)
    threads = [int(task.name) for task in awake()]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
    assert sorted(tuple(os.sched_getaffinity(it)) for it in threads) == sorted(
        (it,) for it in CORES
    )


def test_they_sleep_when_there_is_nothing_to_evaluate(context: Context):
    context.seconds(len(CORES), 1)
    time.sleep(0.1)
    before = [ticks(task) for task in awake()]
    time.sleep(0.5)
    assert [ticks(task) for task in awake()] == before


def test_they_turn_in_the_pauses_between_evaluations(context: Context):
    context.use_threads(len(CORES))
    before = sum(map(ticks, awake()))
    for _ in range(100):
        context.decode([Entry(1, 0, 0, wanted=True)])
        context.forget(0, 0)
        time.sleep(0.004)
    assert sum(map(ticks, awake())) > before


def test_a_model_that_leaves_cores_to_others_keeps_none_awake(context: Context):
    time.sleep(0.1)
    before = [ticks(task) for task in awake()]
    for _ in range(20):
        context.seconds(len(CORES) - 1, 1)
        time.sleep(0.004)
    assert [ticks(task) for task in awake()] == before
