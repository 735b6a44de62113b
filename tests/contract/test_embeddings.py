"""What every engine with embeddings must keep: the package's, and servers behind `upstream`."""

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from inference.catalogue import CATALOGUE
from inference.engines.backends import Backend
from inference.engines.base import Engine, EngineError, Request, RequestRefused, Turn
from inference.engines.upstream import UpstreamEngine
from inference.engines.vectors import CHARACTERS, TEXTS
from inference.engines.wordllama import WordLlamaEngine
from tests.contract.conftest import model_file
from tests.sidecar import Sidecar

ROOT = Path(__file__).resolve().parents[2]
CAT, KITTEN = "The cat sleeps on the sofa.", "A kitten is napping on the couch."
STOCKS = "The stock market fell sharply today."
FIRST_NUMBERS = [0.0490123, -0.08248077, 0.09533731, 0.02040939]  # of CAT, by the package's code


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    server = Sidecar(model_file(), slots=1, embeddings=True)  # docs/sidecars.md says why one
    yield server
    server.close()


@pytest.fixture(params=["wordllama", pytest.param("upstream", marks=pytest.mark.real_model)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine: Engine = WordLlamaEngine(CATALOGUE["wordllama-256"].file_sha256)
    if request.param == "upstream":
        url = request.getfixturevalue("sidecar").url
        backend = Backend("one", url, "llama_server", slots=1)
        engine = UpstreamEngine([backend], context_tokens=2048)
    await engine.start(lambda percent: None)
    yield engine
    await engine.stop()


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_the_same_text_has_the_same_vector(engine: Engine):
    [alone] = await engine.embed([CAT])
    first, _, again = await engine.embed([CAT, STOCKS, CAT])
    assert cosine(alone, first) > 0.999
    assert cosine(first, again) > 0.999


async def test_vectors_come_in_the_order_of_the_texts(engine: Engine):
    texts = [f"{word} number {n}" for n in range(20) for word in ("river", "engine")]
    there = await engine.embed(texts)
    back = await engine.embed(texts[::-1])
    assert all(cosine(a, b) > 0.999 for a, b in zip(there, back[::-1], strict=True))


async def test_vectors_are_equally_long_and_of_length_one(engine: Engine):
    vectors = await engine.embed([CAT, "x", "漢字 \N{FOX FACE}", " \n", "river mountain " * 50])
    assert len({len(vector) for vector in vectors}) == 1
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1] * 5)


async def test_like_sentences_are_closer_than_unlike_ones(engine: Engine):
    cat, kitten, stocks = await engine.embed([CAT, KITTEN, STOCKS])
    assert cosine(cat, kitten) > max(cosine(cat, stocks), cosine(kitten, stocks)) + 0.1


async def test_no_texts_have_no_vectors(engine: Engine):
    assert await engine.embed([]) == []


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["x"] * (TEXTS + 1), "2049 texts are too many at once; the most is 2048"),
        (["x", "x" * (CHARACTERS + 1)], "Text 2 has 32001 characters"),
        (["x", ""], "Text 2 has 0 characters"),
        (["\ud83d"], "Text 1 holds half a character"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_name(engine: Engine, texts: list[str], reason):
    with pytest.raises(RequestRefused, match=reason):
        await engine.embed(texts)


async def test_a_caller_who_gives_up_leaves_the_engine_free_for_the_next(engine: Engine):
    leaving = asyncio.create_task(engine.embed(["a river in the hills"] * TEXTS))
    await asyncio.sleep(0.05)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert engine.capacity().busy == 0
    async with asyncio.timeout(30):
        assert await engine.embed([CAT])


async def test_callers_at_once_get_their_own_vectors(engine: Engine):
    texts = [CAT, STOCKS, "Rivers flow to the sea."]
    alone = [(await engine.embed([text]))[0] for text in texts]
    together = await asyncio.gather(*(engine.embed([text]) for text in texts))
    assert all(cosine(a, b) > 0.999 for a, [b] in zip(alone, together, strict=True))


# --- the package's own --------------------------------------------------------------------
@pytest.fixture
async def wordllama() -> AsyncIterator[WordLlamaEngine]:
    engine = WordLlamaEngine()
    await engine.start(lambda percent: None)
    yield engine
    await engine.stop()


async def test_the_vectors_are_those_of_the_packages_own_code(wordllama: WordLlamaEngine):
    [vector] = await wordllama.embed([CAT])
    assert len(vector) == 256
    assert vector[:4] == pytest.approx(FIRST_NUMBERS, abs=1e-6)


async def test_a_vector_does_not_depend_on_its_neighbours_at_all(wordllama: WordLlamaEngine):
    [alone] = await wordllama.embed([CAT])
    assert (await wordllama.embed(["river " * 500, CAT]))[1] == alone


async def test_it_stops_within_a_text_when_nobody_waits(wordllama: WordLlamaEngine):
    minutes = asyncio.create_task(wordllama.embed(["river " * 5000] * TEXTS))
    await asyncio.sleep(0.05)
    minutes.cancel()
    async with asyncio.timeout(30):
        await wordllama.embed([CAT])


async def test_it_writes_no_text_and_says_so(wordllama: WordLlamaEngine):
    turns = (Turn("user", "Hi"),)
    with pytest.raises(EngineError, match="writes no text"):
        wordllama.generate(Request(turns))
    with pytest.raises(EngineError, match="reads no conversations"):
        await wordllama.count_tokens(turns)


async def test_its_fingerprint_names_the_package_and_both_files(wordllama: WordLlamaEngine):
    assert "wordllama 0.4.0.post1 weights=" in wordllama.fingerprint()
    assert " tokenizer=" in wordllama.fingerprint()


async def test_other_weights_than_the_releases_are_refused():
    with pytest.raises(EngineError, match="other weights"):
        await WordLlamaEngine("0" * 64).start(lambda percent: None)


OFFLINE = """
import asyncio, sys

def forbid(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname"):
        raise AssertionError(event)

sys.addaudithook(forbid)
from inference.engines.wordllama import WordLlamaEngine

async def main():
    engine = WordLlamaEngine()
    await engine.start(lambda percent: None)
    print(len((await engine.embed(["a river"]))[0]))
    await engine.stop()

asyncio.run(main())
clients = {"requests", "urllib3", "httpx", "huggingface_hub", "http.client", "wordllama"}
print(sorted(clients & set(sys.modules)))
"""


def test_it_never_uses_the_network_and_loads_nothing_that_could():
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ran.stdout.split("\n"), ran.stderr) == (["256", "[]", ""], "")
