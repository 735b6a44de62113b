"""A real cluster for each module of tests."""

import os
import shutil
from collections.abc import Iterator

import pytest

from bench.cluster import Cluster, running_cluster
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
    with running_cluster(RATE_LIMIT_LOGIN="5/15m") as made:
        yield made


async def begin(cluster: Cluster, text: str = COUNT, until: int = 60) -> Reader:
    person = await Person(cluster).arrive()
    reader = Reader(person, await person.ask(text))
    await reader.read(until)
    return reader
