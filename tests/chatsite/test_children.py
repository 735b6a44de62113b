"""The supervisor keeps a worker for each release that is wanted, and none for others."""

from dataclasses import dataclass
from typing import Any

import pytest

from chatsite import children
from chatsite.children import Crew
from inference.models import Release

pytestmark = pytest.mark.django_db(transaction=True)  # the crew closes its connection


@dataclass
class StandIn:
    """For a worker's process: it runs until `code` is set."""

    words: list[str]
    code: int | None = None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    monkeypatch.setattr(children, "RESTART_PAUSE", 0)  # as if all had lived for long
    return []


@pytest.fixture
def crew(settings: Any, started: list[StandIn]) -> Crew:
    settings.MODEL = "simulated"

    def spawn(words: list[str], names: dict[str, str]) -> Any:
        started.append(StandIn(words))
        return started[-1]

    return Crew(spawn)


def test_a_worker_that_ends_because_nobody_wants_its_release_is_not_started_again(
    crew: Crew, started: list[StandIn], release: Release, other_release: Release
):
    crew.ensure()
    other_release.promote("test")
    started[0].code = 0  # before the crew has looked who is wanted
    crew.ensure()
    assert [it.words[-1] for it in started] == ["simulated@1", "simulated@2"]


def test_a_worker_that_dies_is_started_again(crew: Crew, started: list[StandIn], release: Release):
    crew.ensure()
    started[0].code = -9
    crew.ensure()
    assert [it.words[-1] for it in started] == ["simulated@1"] * 2
