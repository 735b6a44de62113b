"""Row 41: a cluster whose answers come from a server of somebody else's, which is not well."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from bench.cluster import Cluster
from bench.reader import Reader
from bench.site import ROOT, Person
from tests.cluster.conftest import needs_nginx
from tests.faults.workers import ALL
from tests.standin import BREAK, HANG, Reply, StandIn, said, streamed

pytestmark = needs_nginx
QUESTION = "How do people greet each other?"
PIECES = ["Grü", "ße,", " 漢", "字", " und", " 🌍", " für", " alle", "."]
TEXT = "".join(PIECES)
WORKERS = 2  # of the cluster
FIRST_LOOK = 2  # requests of a worker to a new server: is it well, what is it; later looks are one
BEGUN = 5  # pieces that come before a server fails
CONTINUES, CANNOT = "vllm", "somebody"  # who says it is the owner of the model


def event(text: str | None, finish: str | None = None) -> bytes:
    """With its characters as they are, not as \\u escapes."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def answer_from(place: int) -> Reply:
    rest, begin = [], 0
    for piece in PIECES:
        rest += [piece[max(0, place - begin) :]] if begin + len(piece) > place else []
        begin += len(piece)
    return Reply([*map(event, rest), event(None, "stop"), b"data: [DONE]\n\n"])


def torn(reply: Reply) -> Reply:
    """Byte by byte, so in the middle of every character."""
    whole = b"".join(part for part in reply.body if isinstance(part, bytes))
    return Reply([whole[n : n + 1] for n in range(len(whole))])


def half_a_character() -> bytes:
    whole = event("漢")
    return whole[: whole.index("漢".encode()) + 2]


SOME = [event(piece) for piece in PIECES[:BEGUN]]
LATE = {  # after some of the answer
    "a cut in a token": Reply([*SOME, event(" 🌍")[:-9], BREAK]),
    "a cut in a character": Reply([*SOME, half_a_character(), BREAK]),
    "no JSON": Reply([*SOME, b"data: {nonsense\n\n"]),
    "no UTF-8": Reply([*SOME, half_a_character() + b'"}}]}\n\n']),
    "half a pair": Reply([*SOME, b'data: {"choices": [{"delta": {"content": "\\ud83c"}}]}\n\n']),
    "wrong types": Reply([*SOME, b'data: {"choices": [{"delta": {"content": 5}}]}\n\n']),
    "an end before the end": Reply([*SOME, b"data: [DONE]\n\n"]),
    "an error in the stream": Reply([*SOME, b'data: {"error": {"message": "died"}}\n\n']),
}
EARLY = {  # before any of it
    "500": Reply([b"<html>"], 500),
    "503": said({"error": "Loading"}, 503),
    "gone at once": Reply([BREAK]),
    "no events": Reply([b"hello\n\n"]),
}
GOES_ON = list(LATE)[::2]  # what breaks off a server that can go on; the rest, one that cannot
FOR_GOOD = list(LATE)[1::2]
if ALL:  # all for both; each of these takes the twenty seconds for which the next piece is waited
    LATE["a hang"] = Reply([*SOME, HANG])
    LATE["pings without end"] = Reply([*SOME, *[b": ping\n\n"] * 3, HANG])
    GOES_ON = FOR_GOOD = list(LATE)


class Server(StandIn):
    """Replies to the question with what it is given, one after the other, then as it should."""

    def __init__(self, owner: str, *bad: Reply) -> None:
        listed = {"data": [{"id": "m", "owned_by": owner}]}
        super().__init__({"/v1/models": said(listed), "/v1/chat/completions": self._reply_to})
        self._bad = list(bad)
        self.tries = 0

    def _reply_to(self, body: Any) -> Reply:
        last = body["messages"][-1]
        begun = last["content"] if last["role"] == "assistant" else ""
        if QUESTION not in [turn["content"] for turn in body["messages"]]:
            return streamed({"choices": [{"delta": {"content": "ok"}, "finish_reason": "stop"}]})
        self.tries += 1
        return self._bad.pop(0) if self._bad else answer_from(len(begun))


async def manage(cluster: Cluster, *words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "manage.py"), *words, cwd=ROOT,
        env=cluster.environment | cluster.told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return said


_promoted: set[str] = set()  # clusters; later servers take the place of the first one


@asynccontextmanager
async def served_by(cluster: Cluster, server: Server) -> AsyncIterator[Person]:
    """People get the model that runs there, through the cluster's own workers."""
    async with server:
        where = ["--url", server.url, "--kind", "openai", "--context", "2000", "--name", "theirs"]
        await manage(cluster, "models", "connect", "simulated", *where)
        if cluster.url not in _promoted:
            await manage(cluster, "models", "promote", "simulated@2")
            _promoted.add(cluster.url)
        await until_workers_ask(server)
        yield await Person(cluster).arrive()


async def until_workers_ask(server: Server) -> None:
    """Each of them looks at a server it has learned of; until then it would ask the one before.

    No worker looks a third time before the other has looked: it would have to be ten seconds late.
    """
    looks = len(server.bodies("/v1/models"))
    async with asyncio.timeout(60):
        while len(server.bodies("/v1/models")) < looks + WORKERS * FIRST_LOOK:
            await asyncio.sleep(0.05)


def found_in(cluster: Cluster, reader: Reader) -> tuple[str, str, int]:
    """Status, text, and the number of terminal events."""
    query = """
        SELECT status, text, (SELECT count(*) FROM inference_chunk c
            WHERE c.generation_id = g.id AND c.kind <> 'delta')
        FROM inference_generation g WHERE id = %s
    """
    with psycopg.connect(cluster.database_url) as own:
        status, text, ends = own.execute(query, [reader.generation]).fetchone() or ("", "", 0)
    return status, text, ends


async def answer_of(cluster: Cluster, server: Server) -> Reader:
    """Read in the socket; the database has the same, ended once, and every character whole."""
    async with served_by(cluster, server) as person:
        reader = Reader(person, await person.ask(QUESTION))
        await reader.finish()
    assert found_in(cluster, reader) == (reader.status, reader.text, 1)
    assert "\N{REPLACEMENT CHARACTER}" not in reader.text
    again = Reader(reader.person, reader.generation)
    await again.finish()
    assert (again.text, again.status) == (reader.text, reader.status)
    assert reader.resets == 0
    return reader


async def test_row_41_an_answer_torn_into_bytes_is_whole(cluster: Cluster):
    server = Server(CANNOT, torn(answer_from(0)))
    reader = await answer_of(cluster, server)
    assert (reader.text, reader.status, server.tries) == (TEXT, "done", 1)


@pytest.mark.parametrize("how", EARLY)
async def test_row_41_a_server_that_fails_before_the_first_word_is_asked_again(
    cluster: Cluster, how: str
):
    server = Server(CANNOT, EARLY[how], EARLY[how])
    reader = await answer_of(cluster, server)
    assert (reader.text, reader.status, server.tries) == (TEXT, "done", 3)


@pytest.mark.parametrize("how", GOES_ON)
async def test_row_41_a_server_that_breaks_off_goes_on_where_it_was(cluster: Cluster, how: str):
    server = Server(CONTINUES, LATE[how])
    reader = await answer_of(cluster, server)
    assert (reader.text, reader.status, server.tries) == (TEXT, "done", 2)


@pytest.mark.parametrize("how", FOR_GOOD)
async def test_row_41_one_that_cannot_go_on_leaves_an_interrupted_answer(
    cluster: Cluster, how: str
):
    server = Server(CANNOT, LATE[how])
    reader = await answer_of(cluster, server)
    begun = "".join(PIECES[:BEGUN])
    assert (reader.text, reader.status, server.tries) == (begun, "interrupted", 1)


async def test_row_41_a_server_that_goes_on_failing_is_given_up(cluster: Cluster):
    server = Server(CANNOT, *[EARLY["500"]] * 9)
    reader = await answer_of(cluster, server)
    assert (reader.text, reader.status, server.tries) == ("", "failed", 4)
