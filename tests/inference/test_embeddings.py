"""Embeddings for whoever wants them in this process, and `manage.py embed`."""

import asyncio
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from inference import embeddings
from inference.catalogue import CATALOGUE, register
from inference.database import in_database
from inference.embeddings import embed
from inference.engines.base import EngineError, RequestRefused
from inference.models import Backend, Model, Release
from inference.worker import build_engine
from tests.standin import StandIn, said

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _unload() -> Iterator[None]:
    yield
    asyncio.run(embeddings.unload())


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Release]:
    """The releases whose engine was built, one entry each time."""
    seen: list[Release] = []

    def build(release: Release) -> Any:
        seen.append(release)
        return build_engine(release)

    monkeypatch.setattr(embeddings, "build_engine", build)
    return seen


async def test_the_default_model_needs_no_preparation():
    [vector] = await embed(["a river"])
    assert len(vector) == 256
    assert await in_database(Release.objects.filter(model__slug="wordllama-256").count) == 1


async def test_the_model_is_loaded_once_however_many_ask_at_once(built: list[Release]):
    await asyncio.gather(*(embed([f"text {number}"]) for number in range(5)))
    await embed(["another"])
    assert len(built) == 1


def test_pages_that_run_in_threads_share_the_model(built: list[Release]):
    found: list[list[list[float]]] = []
    for _ in range(2):
        page = threading.Thread(target=lambda: found.append(asyncio.run(embed(["a river"]))))
        page.start()
        page.join()
    assert found[0] == found[1]
    assert len(built) == 1


async def test_too_much_is_refused_through_the_seam_as_well():
    with pytest.raises(RequestRefused, match="2049 texts"):
        await embed(["x"] * 2049)


@pytest.mark.parametrize(
    ("model", "reason"),
    [("nothing", "no embedding model 'nothing'"), ("simulated", "Simulated writes text")],
)
async def test_a_model_that_cannot_do_it_is_named(release: Release, model: str, reason: str):
    with pytest.raises(EngineError, match=reason):
        await embed(["x"], model)


async def test_a_model_that_staff_have_switched_off_is_not_used():
    await in_database(register, CATALOGUE["wordllama-256"])
    await in_database(lambda: Model.objects.update(is_enabled=False))
    with pytest.raises(EngineError, match="no embedding model"):
        await embed(["x"])


def connected(url: str) -> Backend:
    """A live release that a server at `url` runs."""
    model = Model.objects.create(slug="remote", title="Remote")
    release = model.record({"engine": "upstream"}, "test", context_tokens=512)
    return Backend.objects.create(release=release, name="one", url=url, kind="openai")


def serving(vector: list[float]) -> StandIn:
    rows = {"data": [{"index": 0, "embedding": vector}]}
    return StandIn({"/v1/models": said({"data": []}), "/v1/embeddings": said(rows)})


async def test_a_server_can_do_it_and_is_followed_when_it_moves(
    settings: Any, built: list[Release]
):
    settings.EMBEDDING_MODEL = "remote"
    async with serving([0, 2]) as server, serving([2, 0]) as other:
        backend = await in_database(connected, server.url)
        assert await embed(["x"]) == [[0, 1]]
        await in_database(lambda: Backend.objects.filter(pk=backend.pk).update(url=other.url))
        assert await embed(["x"]) == [[1, 0]]
    assert len(built) == 1


async def test_a_promoted_release_takes_over(built: list[Release]):
    async with serving([0, 2]) as server, serving([2, 0]) as other:
        first = await in_database(connected, server.url)
        assert await embed(["x"], "remote") == [[0, 1]]

        def promote() -> None:
            model = first.release.model
            release = model.record({"engine": "upstream", "weights_sha256": "2"}, "test",
                                   context_tokens=512)  # fmt: skip
            Backend.objects.create(release=release, name="two", url=other.url, kind="openai")
            release.promote("test")

        await in_database(promote)
        assert await embed(["x"], "remote") == [[1, 0]]
    assert len(built) == 2


def test_the_command_prints_how_alike_texts_are():
    out = io.StringIO()
    call_command("embed", "The cat sleeps.", "A kitten naps.", "Stocks fell.", stdout=out)
    head, _, *rows = out.getvalue().splitlines()
    assert head == "wordllama-256: 256 dimensions"
    table = [[float(cell) for cell in row.split()[1:4]] for row in rows]
    assert [table[n][n] for n in range(3)] == [1, 1, 1]
    assert table[0][1] == table[1][0] > table[0][2]
    assert rows[1].endswith("  A kitten naps.")


def test_the_command_says_what_is_wrong_in_a_sentence():
    with pytest.raises(CommandError, match="no embedding model 'nothing'"):
        call_command("embed", "text", "text", model="nothing")
    with pytest.raises(CommandError, match="at least two texts"):
        call_command("embed", "text")
