"""A minute of everything at once; `make nemesis` goes on for as long as you like."""

import asyncio

from bench.cluster import Cluster
from bench.faults import FAULTS
from bench.nemesis import all_wrong, ordeal
from tests.cluster.conftest import needs_nginx
from tests.faults.workers import ALL

pytestmark = needs_nginx
SECONDS, SEED = (300, 2) if ALL else (20, 1)


def test_whatever_happens_no_answer_is_lost_repeated_or_reordered(cluster: Cluster):
    history = asyncio.run(ordeal(cluster, SECONDS, SEED, list(FAULTS)))
    assert history.answers.total() > 10
    assert history.wrong + all_wrong(cluster, history) == [], f"seed {SEED}"
