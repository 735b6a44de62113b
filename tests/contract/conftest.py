"""Engines under contract: the simulated one, and llama.cpp with the default model's file."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site_settings

from inference.catalogue import CATALOGUE
from inference.engines.base import Delta, Engine, Request
from inference.engines.simulated import SimulatedEngine


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


@pytest.fixture(params=["simulated", pytest.param("llama_cpp", marks=pytest.mark.real_model)])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "llama_cpp":
        loaded: Engine = request.getfixturevalue("llama")
        return loaded
    return SimulatedEngine(slots=4, context_tokens=2048, tokens_per_second=1000)


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
