"""/metrics: how much there is to do, for whoever scales the workers."""

from typing import Any
from uuid import uuid4

import pytest
from django.test import Client

from accounts.models import User
from inference.models import Generation, Release, Worker

pytestmark = pytest.mark.django_db
TOKEN = {"Authorization": "Bearer of-prometheus"}


@pytest.fixture(autouse=True)
def token(settings: Any) -> None:
    settings.METRICS_TOKEN = "of-prometheus"


def told(client: Client) -> dict[str, float]:
    answer = client.get("/metrics", headers=TOKEN)
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=")
    lines = [line for line in answer.content.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_demand_is_queued_and_running_over_slots(client: Client, alice: User, release: Release):
    slug = release.model.slug
    for _ in range(5):
        Generation.objects.enqueue(user=alice, release=release, messages=[], parameters={})
    Generation.objects.claim(release, uuid4(), 2)
    for state in ("ready", "gone"):
        Worker.objects.create(
            boot_id=uuid4(), node="here", pid=1, release=release, state=state, slots=4,
            load_seconds=2.5,
        )  # fmt: skip
    figures = told(client)
    assert figures[f'chatsite_runs{{model="{slug}",state="queued"}}'] == 3
    assert figures[f'chatsite_runs{{model="{slug}",state="running"}}'] == 2
    assert figures[f'chatsite_slots{{model="{slug}"}}'] == 4
    assert figures[f'chatsite_demand{{model="{slug}"}}'] == 1.25
    assert figures[f'chatsite_model_load_seconds{{model="{slug}"}}'] == 2.5


def test_without_a_worker_everything_that_waits_is_demand(
    client: Client, alice: User, release: Release
):
    for _ in range(3):
        Generation.objects.enqueue(user=alice, release=release, messages=[], parameters={})
    assert told(client)[f'chatsite_demand{{model="{release.model.slug}"}}'] == 3


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer of-somebody", "of-prometheus"])
def test_nobody_else_is_told(client: Client, header: str):
    assert client.get("/metrics", headers={"Authorization": header}).status_code == 404


def test_without_a_token_in_the_settings_nobody_is_told(client: Client, settings: Any):
    settings.METRICS_TOKEN = ""
    assert client.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 404
