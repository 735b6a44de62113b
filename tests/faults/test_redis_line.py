"""A bad line between everything and Redis, which itself is well: torn, late, cut, silent."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accounts.models import User
from bench.proxy import Proxy
from inference.models import Release
from tests.faults.workers import ALL, Workers, ask
from tests.valkey import Valkey, use

pytestmark = pytest.mark.django_db(transaction=True)
NUMBERS = 250
COUNT, COUNTED = f"count {NUMBERS} pace=80", " ".join(map(str, range(1, NUMBERS + 1)))


class Line(Proxy):
    """Its connections are cut in its own loop, whoever asks."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(**options)
        self._loop = loop

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(super().cut)


@contextmanager
def line_to(path: Path, seed: int) -> Iterator["Line"]:
    """The proxy, in a thread with a loop of its own."""
    loop = asyncio.new_event_loop()
    proxy = Line(loop, path=str(path), seed=seed)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(None, None, None), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@pytest.fixture
def line(tmp_path: Path, settings: Any) -> Iterator[Line]:
    server = Valkey(tmp_path, keeps=True).start()
    with line_to(tmp_path / "valkey.sock", seed=1) as proxy:
        use(SimpleNamespace(url=proxy.url.replace("http", "redis")), settings)  # type: ignore[arg-type]
        yield proxy
    server.kill()


def test_row_34_over_a_torn_late_and_cut_line_to_redis_an_answer_is_exact(
    line: Line, start_workers: Callable[..., Workers], alice: User, release: Release
):
    line.slice, line.jitter, line.cuts = 200, 0.01, 0.3
    workers = start_workers(release)
    workers.start()
    readers = [ask(alice, release, COUNT) for _ in range(3 if ALL else 1)]
    assert [reader.read_to_the_end() for reader in readers] == [COUNTED] * len(readers)
    assert [reader.taken_back for reader in readers] == [[]] * len(readers)


def test_row_17_a_line_to_redis_that_goes_silent_and_comes_back_holds_up_for_a_second(
    line: Line, start_workers: Callable[..., Workers], alice: User, release: Release
):
    workers = start_workers(release)
    workers.start()
    reader = ask(alice, release, COUNT)
    reader.read_until(40)
    line.is_hole = True
    silent_at = time.monotonic()
    reader.read_until(len(reader.text) + 1, seconds=6)
    assert time.monotonic() - silent_at < (2 if ALL else 4)  # generous: a second
    before = len(reader.text)
    time.sleep(2)
    reader.look()
    assert len(reader.text) > before + 60  # of 80 a second
    line.is_hole = False
    line.cut()
    assert reader.read_to_the_end() == COUNTED
    assert reader.taken_back == []
