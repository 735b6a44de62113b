"""A real cluster for each module of tests."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.cluster import Cluster
from bench.reader import Reader
from bench.site import Person
from tests.chatsite.test_serve import COUNT

needs_nginx = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"),
        reason="needs nginx (Debian, Ubuntu: apt-get install nginx-light)",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not in pytest's folder, which it closes to others: run by root, PostgreSQL is another user.
    with tempfile.TemporaryDirectory(prefix="chatsite-") as folder:
        Path(folder).chmod(0o755)
        made = Cluster(Path(folder), RATE_LIMIT_LOGIN="5/15m")
        made.start()
        yield made
        if made.process and made.process.poll() is None:
            assert made.stop() == 0


async def begin(cluster: Cluster, text: str = COUNT, until: int = 60) -> Reader:
    person = await Person(cluster).arrive()
    reader = Reader(person, await person.ask(text))
    await reader.read(until)
    return reader
