"""Real processes on the test's own database."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.catalogue import CATALOGUE, register
from inference.models import Release
from tests.faults.workers import Workers


@pytest.fixture
def start_workers(
    site_environment: dict[str, str], settings: Any
) -> Iterator[Callable[..., Workers]]:
    settings.GENERATION_FINISHED = "tests.contract.conftest.nothing_follows"
    names = {"TEST_GENERATION_FINISHED": settings.GENERATION_FINISHED, "DRAIN_SECONDS": "1"}
    pools: list[Workers] = []

    def start(release: Release, **settings: str) -> Workers:
        pools.append(Workers({**site_environment, **names, **settings}, release))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()


@pytest.fixture
def workers(start_workers: Callable[..., Workers], release: Release) -> Workers:
    """Workers of the simulated model."""
    return start_workers(release)


@pytest.fixture
def real_release(transactional_db: None) -> Release:
    return register(CATALOGUE["smollm2-135m-instruct"])


@pytest.fixture
def real_workers(start_workers: Callable[..., Workers], real_release: Release) -> Workers:
    return start_workers(real_release)
