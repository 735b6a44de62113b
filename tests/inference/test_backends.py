"""Which server gets the next answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from inference.engines import backends
from inference.engines.backends import Backend, Backends
from inference.engines.base import EngineError
from inference.engines.outbound import Unavailable, check_address
from tests.standin import Reply, StandIn, said

NAMES = ("a", "b", "c")


def backend(name: str, **fields: object) -> Backend:
    return Backend(name, f"http://127.0.0.1:9/{name}", "openai", slots=2, **fields)  # type: ignore[arg-type]


@pytest.fixture
async def pool() -> AsyncIterator[Backends]:
    servers = Backends(backend(name) for name in NAMES)
    yield servers
    await servers.close()


async def names_of(pool: Backends, count: int, scope: str = "") -> list[str]:
    """Who gets this many answers when none of them ends."""
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(pool.lease(scope)) for _ in range(count)]
        return [peer.backend.name for peer in peers]


async def usable(pool: Backends) -> list[str]:
    return [peer.backend.name for peer in pool.peers if peer.is_usable]


async def fail(pool: Backends, name: str, times: int, rest: float = 0.0) -> None:
    [peer] = [peer for peer in pool.peers if peer.backend.name == name]
    for _ in range(times):
        peer.failed(Unavailable("gone", rest))


async def test_work_goes_to_the_one_with_the_least_of_it(pool: Backends):
    assert sorted(await names_of(pool, 6)) == ["a", "a", "b", "b", "c", "c"]


async def test_least_is_relative_to_what_a_server_can_do(pool: Backends):
    pool.use([backend("a"), replace(backend("b"), slots=6)])
    assert sorted(await names_of(pool, 8)) == ["a"] * 2 + ["b"] * 6


async def test_a_scope_stays_where_it_was_unless_that_is_clearly_busier(pool: Backends):
    async with pool.lease("alice"), pool.lease("bob") as first:
        home = first.backend.name
    assert home != "a"
    assert [await names_of(pool, 1, "bob") for _ in range(3)] == [[home]] * 3
    assert await names_of(pool, 2, "bob") != [home, home]


async def test_a_draining_server_gets_no_new_work_and_keeps_what_it_has(pool: Backends):
    async with pool.lease("bob") as peer:
        pool.use([replace(backend(n), draining=n == peer.backend.name) for n in NAMES])
        assert peer.backend.name not in await names_of(pool, 4, "bob")
        assert pool.busy == 1


async def test_a_server_taken_away_keeps_its_answers_until_they_end(pool: Backends):
    async with pool.lease("bob") as peer:
        pool.use([backend("c")])
        assert await names_of(pool, 2, "bob") == ["c", "c"]
        assert pool.busy == 1
    assert (pool.busy, peer.outstanding) == (0, 0)


async def test_failures_in_a_row_open_the_circuit(pool: Backends):
    await fail(pool, "a", 3)
    assert "a" not in await names_of(pool, 8)


async def test_one_success_makes_up_for_failures(pool: Backends):
    pool.use([backend("a")])
    for _ in range(4):
        await fail(pool, "a", 2)
        await names_of(pool, 1)


async def test_a_server_that_asks_to_be_left_alone_is(pool: Backends):
    await fail(pool, "a", 1, rest=30)
    assert "a" not in await names_of(pool, 8)


async def test_when_nobody_is_left_it_says_so(pool: Backends):
    for name in NAMES:
        await fail(pool, name, 3)
    with pytest.raises(Unavailable, match="None of this model's servers"):
        await names_of(pool, 1)


async def test_only_a_look_at_its_health_closes_a_circuit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(backends, "SHORTEST_BREAK", 0.01)
    async with StandIn({"/v1/models": Reply(status=500)}) as server:
        pool = Backends([Backend("a", server.url, "openai")])
        await fail(pool, "a", 3)
        watching = asyncio.create_task(pool.watch())
        async with asyncio.timeout(10):
            while not server.asked:
                await asyncio.sleep(0.01)
            assert "a" not in await usable(pool)
            server.answers["/v1/models"] = said({"data": [{"id": "m"}]})
            while not await usable(pool):
                await asyncio.sleep(0.01)
        watching.cancel()
        await pool.close()


@pytest.mark.parametrize(
    "url",
    [
        "host:80",
        "ftp://host",
        "http://",
        "http://name:word@host",
        "http://host?x=1",
        "http://host:99999",
        "file:///etc/passwd",
    ],
)
def test_what_is_not_the_address_of_a_server_is_refused(url: str):
    with pytest.raises(EngineError, match="The address must"):
        check_address(url)
