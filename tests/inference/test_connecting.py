"""manage.py models connect, and how a worker takes up what it records."""

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command

from inference.audit import ReleaseEvent
from inference.backend import Backend
from inference.database import in_database
from inference.engines.base import EngineError
from inference.models import Release, Worker
from inference.worker import WorkerProcess, build_engine
from tests.inference.test_runner import until
from tests.inference.test_upstream import WHOLE, as_vllm
from tests.standin import StandIn, said, streamed

pytestmark = pytest.mark.django_db(transaction=True)


def connect(slug: str, url: str, kind: str = "vllm", *more: str) -> str:
    out = io.StringIO()
    call_command("models", "connect", slug, "--url", url, "--kind", kind, *more, stdout=out)
    return out.getvalue()


@asynccontextmanager
async def serving(server: StandIn, *more: str) -> AsyncIterator[Release]:
    """The server, connected as the model `far`."""
    async with server:
        await asyncio.to_thread(_alone, connect, "far", server.url, "vllm", *more)
        yield await in_database(Release.objects.get, model__slug="far")


def _alone(work: Any, *arguments: str) -> Any:
    """In a thread of its own, whose connection is closed again."""
    from django.db import connection

    try:
        return work(*arguments)
    finally:
        connection.close()


async def test_a_connected_server_is_a_live_release_with_what_it_says_of_itself():
    async with as_vllm(streamed(*WHOLE)) as server:
        told = await asyncio.to_thread(_alone, connect, "far", server.url, "vllm")
    release = await in_database(lambda: Release.objects.select_related("model").get())
    assert (release.engine, release.context_tokens, release.state) == ("upstream", 900, "live")
    backend = await in_database(Backend.objects.get)
    assert (backend.release_id, backend.served_model, backend.slots) == (release.pk, "m", 8)
    assert "Found m vLLM 0" in told
    assert "another one goes on" in told


async def test_a_second_server_joins_the_first_and_the_same_again_changes_it():
    async with serving(as_vllm(streamed(*WHOLE))) as release, as_vllm(streamed(*WHOLE)) as other:
        for slots in ("3", "5"):
            await asyncio.to_thread(
                _alone, connect, "far", other.url, "vllm", "--name", "two", "--slots", slots
            )
        slots_of = dict(await in_database(list, Backend.objects.values_list("name", "slots")))
    assert sorted(slots_of.values()) == [5, 8]
    assert slots_of["two"] == 5
    assert await in_database(Release.objects.count) == 1
    assert len(await in_database(release.servers)) == 2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["far", "http://127.0.0.1:9", "vllm"], "cannot be reached"),
        (["far", "ftp://x", "vllm"], "must look like"),
        (["far", "http://x", "vllm", "--api-key-env", "BACKEND_KEY_X"], "BACKEND_KEY_X is empty"),
        (["far", "http://x", "vllm", "--api-key-env", "SECRET_KEY"], "begins with BACKEND_KEY_"),
        (["no name", "http://x", "vllm"], "cannot be a name"),
    ],
)
def test_what_cannot_be_connected_is_told_in_one_sentence(more: list[str], sentence: str):
    with pytest.raises(CommandError, match=sentence):
        connect(*more)
    assert not Release.objects.exists()


async def test_a_server_of_another_kind_does_not_join():
    async with as_vllm(streamed()) as first, as_vllm(streamed()) as other:
        await asyncio.to_thread(_alone, connect, "far", first.url, "vllm")
        with pytest.raises(CommandError, match="another kind"):
            await asyncio.to_thread(_alone, connect, "far", other.url, "openai", "--context", "900")
    assert await in_database(Backend.objects.count) == 1


async def test_a_server_with_another_model_is_another_release():
    other = as_vllm(streamed())
    other.answers["/v1/models"] = said({"data": [{"id": "x", "max_model_len": 900}]})
    async with as_vllm(streamed()) as first, other:
        await asyncio.to_thread(_alone, connect, "far", first.url, "vllm")
        told = await asyncio.to_thread(_alone, connect, "far", other.url, "vllm")
    assert "promote far@2" in told
    releases = await in_database(
        lambda: list(Release.objects.values_list("served_model", "state", "backends__served_model"))
    )
    assert sorted(releases) == [("m", "live", "m"), ("x", "candidate", "x")]


async def test_every_server_that_joins_is_in_the_audit_trail():
    async with as_vllm(streamed()) as server:
        await asyncio.to_thread(_alone, connect, "far", server.url, "vllm")
    events = await in_database(lambda: list(ReleaseEvent.objects.values_list("action", "note")))
    assert [action for action, _ in events] == ["add", "server"]
    assert server.url in events[1][1]


async def test_a_server_for_a_model_of_another_engine_is_a_candidate(release: Release):
    async with as_vllm(streamed()) as server:
        said = await asyncio.to_thread(_alone, connect, "simulated", server.url, "vllm")
    assert "promote simulated@2" in said
    states = await in_database(lambda: list(Release.objects.values_list("engine", "state")))
    assert sorted(states) == [("simulated", "live"), ("upstream", "candidate")]


async def test_a_running_worker_takes_up_what_staff_change(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("inference.worker.FOLLOW_SECONDS", 0.05)
    async with serving(as_vllm(streamed(*WHOLE)), "--slots", "4") as release:
        worker = await in_database(WorkerProcess, release, uuid4())
        await in_database(worker._register)
        await worker._engine.start(lambda percent: None)
        following = asyncio.create_task(worker._follow_servers())
        for values, slots in (
            ({"slots": 6}, 6),
            ({"is_draining": True}, 0),
            ({"is_draining": False, "slots": 5}, 5),
        ):
            await in_database(Backend.objects.update, **values)
            await until(Worker.objects.filter(slots=slots).exists)
        following.cancel()
        await worker._engine.stop()


def test_the_key_is_read_from_the_environment_and_shown_nowhere(
    release: Release, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(os.environ, "BACKEND_KEY_FAR", "sk-secret")
    backend = Backend(
        release=release, name="a", url="http://x", kind="openai", api_key_env="BACKEND_KEY_FAR"
    )
    assert backend.for_engine().key == "sk-secret"
    assert "sk-secret" not in repr(backend.for_engine())


@pytest.mark.parametrize("url", ["ftp://x", "http://a:b@x", "javascript:alert(1)"])
def test_staff_cannot_record_what_is_no_address(release: Release, url: str):
    with pytest.raises(ValidationError, match="The address must"):
        Backend(release=release, name="a", url=url, kind="openai").full_clean()


async def test_a_release_without_servers_says_what_to_run(release: Release):
    facts = {"version": 2, "engine": "upstream", "context_tokens": 512}
    lonely = await in_database(lambda: release.model.releases.create(**facts))
    engine = await in_database(build_engine, lonely)
    with pytest.raises(EngineError, match="models connect"):
        await engine.start(lambda percent: None)
