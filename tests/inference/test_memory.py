"""What memory there is, and a word beforehand where a model will want more."""

import logging
import sys
from pathlib import Path

import pytest

from inference.engines import memory
from inference.engines.llama_cpp import LlamaCppEngine
from tests.contract.conftest import model_file

HOST = "MemTotal:       8000000 kB\n"
ENDLESS = str(2**63 - 4096)  # what the first version says for "no limit"


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, 8_192_000_000),
        ("0::/\n", {"memory.max": "max"}, 8_192_000_000),
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "max"}, 2000),
        ("0::/only/the/host/has/this\n", {"memory.max": "3000"}, 3000),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4000"}, 4000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": ENDLESS}, 8_192_000_000),
        ("3:cpu,cpuacct:/\n", {"memory.max": "5000"}, 8_192_000_000),
    ],
)
def test_the_least_of_the_machines_and_the_containers_memory_counts(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: int
):
    files = {"proc/meminfo": HOST, "proc/self/cgroup": groups}
    for name, text in {**files, **{f"sys/fs/cgroup/{k}": v for k, v in limits.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.allowed(tmp_path) == expected


def test_where_nothing_tells_nothing_is_known(tmp_path: Path):
    assert memory.allowed(tmp_path) == 0


@pytest.mark.real_model
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which tells what was asked for")
@pytest.mark.parametrize(("room", "said"), [(1 << 40, 0), (200 << 20, 1), (0, 0)])
async def test_a_model_that_will_want_more_memory_than_there_is_says_so_at_its_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int, said: int
):
    """Its cache takes memory as it fills: the first conversations would show nothing."""
    monkeypatch.setattr(memory, "allowed", lambda: room)
    engine = LlamaCppEngine(model_file(), slots=8, context_tokens=4096)
    with caplog.at_level(logging.WARNING):
        await engine.start(lambda percent: None)
    await engine.stop()
    told = [it.message for it in caplog.records if "8 conversations of 4096 tokens" in it.message]
    assert len(told) == said
