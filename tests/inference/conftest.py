"""The spine alone: nothing of the product follows from an ended run."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_product(settings: Any) -> None:
    settings.GENERATION_FINISHED = "tests.contract.conftest.nothing_follows"
