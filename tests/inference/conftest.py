"""The spine alone: nothing of the product follows from an ended run."""

from collections.abc import Iterator
from typing import Any

import pytest

from inference.database import close_connections


@pytest.fixture(autouse=True)
def _no_product(settings: Any) -> None:
    settings.GENERATION_FINISHED = "tests.contract.conftest.nothing_follows"


@pytest.fixture(autouse=True)
def _close_database_threads() -> Iterator[None]:
    """Threads keep their connections, and a database in use cannot be dropped."""
    yield
    close_connections()
