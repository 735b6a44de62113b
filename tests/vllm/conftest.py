"""The engine under contract here: the upstream one in front of a real vLLM.

Not collected by `make test`: `make test-vllm` installs vLLM first.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from inference.engines.backends import Backend
from inference.engines.upstream import UpstreamEngine
from tests.contract.conftest import skip_unless_promised
from tests.vllm.server import VllmServer


@pytest.fixture(scope="session")
def server() -> Iterator[VllmServer]:
    server = VllmServer()
    yield server
    server.close()


@asynccontextmanager
async def upstream(*urls: str) -> AsyncIterator[UpstreamEngine]:
    listed = [Backend(f"vllm-{number}", url, "vllm", slots=4) for number, url in enumerate(urls)]
    engine = UpstreamEngine(listed, context_tokens=2048)
    await engine.start(lambda percent: None)
    yield engine
    await engine.stop()


@pytest.fixture
async def engine(
    request: pytest.FixtureRequest, server: VllmServer
) -> AsyncIterator[UpstreamEngine]:
    skip_unless_promised(request, "vllm")
    async with upstream(server.url) as engine:
        yield engine
