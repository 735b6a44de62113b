"""Engines under contract: the simulated one, llama.cpp with the default model's file, and a real
llama-server with the same file behind the upstream engine, spoken to in token ids and as any
server with OpenAI's API.

What an engine cannot promise, it is not asked for: a test names the promise it needs with
`@pytest.mark.promises`, and is skipped for an engine that does not give it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site_settings

from inference.catalogue import CATALOGUE
from inference.engines.base import Delta, Engine, Request
from inference.engines.simulated import SimulatedEngine
from tests.sidecar import Sidecar


def model_file() -> Path:
    path = Path(site_settings.MODELS_DIR) / CATALOGUE["smollm2-135m-instruct"].file_name
    assert path.exists(), "the default model's file is missing: run `make dev`"
    return path


@pytest.fixture(scope="session")
def llama() -> Iterator[Engine]:
    from inference.engines.llama_cpp import LlamaCppEngine

    engine = LlamaCppEngine(model_file(), slots=4, context_tokens=2048, threads=1)
    asyncio.run(engine.start(lambda percent: None))
    yield engine
    asyncio.run(engine.stop())


@pytest.fixture(scope="session")
def sidecar() -> Iterator[Sidecar]:
    server = Sidecar(model_file())
    yield server
    server.close()


@pytest.fixture
async def upstream(sidecar: Sidecar, kind: Any) -> AsyncIterator[Engine]:
    from inference.engines.backends import Backend
    from inference.engines.upstream import UpstreamEngine

    backend = Backend("one", sidecar.url, kind, slots=4)
    engine = UpstreamEngine([backend], context_tokens=2048)
    await engine.start(lambda percent: None)
    yield engine
    await engine.stop()


# "the same beside others": whoever else is running, the tokens are the same.
# "the same over a seam": a continued answer is the one there would have been.
# "tokens": they are told, with the text they make.
TOLD = {"tokens"}
ALL = {"the same beside others", "the same over a seam", *TOLD}
PROMISES = {
    "simulated": ALL, "llama_cpp": ALL, "llama_server": TOLD, "openai": set(),
    "vllm": TOLD,  # in tests/vllm
}  # fmt: skip
REAL = [
    pytest.param(name, marks=pytest.mark.real_model)
    for name in ("llama_cpp", "llama_server", "openai")
]


def skip_unless_promised(request: pytest.FixtureRequest, engine: str) -> None:
    asked = {promise for mark in request.node.iter_markers("promises") for promise in mark.args}
    if missing := asked - PROMISES[engine]:
        pytest.skip(f"{engine} does not promise {', '.join(sorted(missing))}")


@pytest.fixture(params=["simulated", *REAL])
def kind(request: pytest.FixtureRequest) -> str:
    skip_unless_promised(request, request.param)
    return str(request.param)


@pytest.fixture
def engine(request: pytest.FixtureRequest, kind: str) -> Engine:
    if kind == "simulated":
        return SimulatedEngine(slots=4, context_tokens=2048, tokens_per_second=1000)
    loaded: Engine = request.getfixturevalue("llama" if kind == "llama_cpp" else "upstream")
    return loaded


async def collect(engine: Engine, request: Request) -> list[Delta]:
    return [delta async for delta in engine.generate(request)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def tokens_of(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


@pytest.fixture(autouse=True)
def _no_product(settings: Any) -> None:
    """The log's contract knows nothing of chats."""
    settings.GENERATION_FINISHED = "tests.contract.conftest.nothing_follows"


def nothing_follows(generation: object) -> None:
    return None
