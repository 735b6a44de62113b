"""A minute of everything at once; `make nemesis` goes on for as long as you like."""

import asyncio

from bench.cluster import Cluster
from bench.faults import FAULTS
from bench.nemesis import ordeal, shown_otherwise, wrong_in_the_database
from tests.cluster.conftest import needs_nginx
from tests.faults.workers import ALL

pytestmark = needs_nginx
SECONDS, SEED = (300, 2) if ALL else (20, 1)


def test_whatever_happens_no_answer_is_lost_repeated_or_reordered(cluster: Cluster):
    history = asyncio.run(ordeal(cluster, SECONDS, SEED, list(FAULTS)))
    assert history.answers.total() > 10
    wrong = history.wrong + wrong_in_the_database(cluster) + shown_otherwise(cluster, history.shown)
    assert wrong == [], f"seed {SEED}"
