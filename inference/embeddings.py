"""Vectors of texts for this process: no queue, no worker.

A model is loaded when it is first asked for. It lives on an event loop of its own, since those
of the callers come and go: pages run in threads, a command makes a loop and closes it.
"""

import asyncio
import threading
from collections.abc import Sequence
from functools import cache

from django.conf import settings

from inference import router
from inference.catalogue import CATALOGUE, register
from inference.database import in_database
from inference.engines.base import Engine, EngineError
from inference.models import Release
from inference.worker import build_engine

ENGINES = ("upstream", "wordllama")  # others write text, and would be loaded here in vain
GRACE_SECONDS = 60.0  # for texts that a replaced release is still at


async def embed(texts: Sequence[str], model: str = "") -> list[list[float]]:
    """A vector of length 1 for each text, by the live release of `model` or EMBEDDING_MODEL.

    Raises RequestRefused (see engines/vectors.py) and EngineError.
    """
    work = _home().embed(tuple(texts), model or settings.EMBEDDING_MODEL)
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _home().loop))


async def unload() -> None:
    """Free what is loaded."""
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_home().unload(), _home().loop))


def live_release(slug: str) -> Release:
    """Raises EngineError for a model that is not there or has no embeddings."""
    release = router.choose(Release.objects.arms(slug), None)
    entry = CATALOGUE.get(slug)
    if release is None and entry and not entry.source:
        register(entry, "embed")
        release = router.choose(Release.objects.arms(slug), None)
    if release is None:
        raise EngineError(f"There is no embedding model {slug!r}. See: ./manage.py models list")
    if release.engine not in ENGINES:
        raise EngineError(f"{release.model} writes text; it has no embeddings.")
    return release


class Home:
    """The engines that are loaded, by model."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._engines: dict[str, tuple[Release, Engine]] = {}
        self._loading = asyncio.Lock()
        self._leaving: set[asyncio.Task[None]] = set()
        threading.Thread(target=self.loop.run_forever, name="embeddings", daemon=True).start()

    async def embed(self, texts: Sequence[str], slug: str) -> list[list[float]]:
        release = await in_database(live_release, slug)
        async with self._loading:
            engine = await self._engine(slug, release)
        return await engine.embed(texts)

    async def _engine(self, slug: str, release: Release) -> Engine:
        loaded = self._engines.get(slug)
        if loaded and loaded[0] == release:
            if release.engine == "upstream":  # staff may have changed where it is
                loaded[1].use(await in_database(release.servers))  # type: ignore[attr-defined]
            return loaded[1]
        engine = await in_database(build_engine, release)
        await engine.start(lambda percent: None)
        self._engines[slug] = release, engine
        if loaded:
            leaving = asyncio.create_task(_stop_later(loaded[1]))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        return engine

    async def unload(self) -> None:
        async with self._loading:
            while self._engines:
                await self._engines.popitem()[1][1].stop()


async def _stop_later(engine: Engine) -> None:
    await asyncio.sleep(GRACE_SECONDS)
    await engine.stop()


_starting = threading.Lock()


def _home() -> Home:
    with _starting:
        return _only_home()


@cache
def _only_home() -> Home:
    return Home()
