"""A machine without nginx: one process for sockets serves all there is."""

import asyncio
import sys
from collections.abc import Iterator

import pytest

from bench.cluster import Cluster, cluster_folder, running
from bench.reader import Reader
from bench.site import Person

pytestmark = pytest.mark.cluster
WITHOUT = "from deploy import cluster; cluster.nginx_command = lambda *_: None; cluster.main()"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with cluster_folder() as folder:
        made = Cluster(folder)
        made.command = [sys.executable, "-c", WITHOUT]
        with running(made):
            made.url = made.replicas[0]
            yield made


def test_without_nginx_people_are_sent_to_a_process_that_serves_pages_and_sockets(
    cluster: Cluster,
):
    async def ask() -> tuple[str, str]:
        person = await Person(cluster).arrive()
        reader = Reader(person, await person.ask("count 3"))
        await reader.finish()
        return reader.text, reader.status

    assert asyncio.run(ask()) == ("1 2 3", "done")
    assert "nginx is not installed" in cluster.log
    assert "Ready after" in cluster.log
    assert cluster.log.count(f"{cluster.url}/") == 2  # told with the reason, and when it is ready
