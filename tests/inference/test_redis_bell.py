"""Wake-ups over Redis, and what is done while it is away."""

import asyncio
import time
from typing import Any

import pytest

from inference import doorbell, redis_server
from inference.database import in_database
from tests.valkey import Valkey

pytestmark = pytest.mark.usefixtures("valkey")


async def heard(bell: doorbell.Bell, seconds: float = 3) -> bool:
    return await bell.wait(seconds)


async def test_a_ring_wakes_those_who_listen_to_its_topic_and_nobody_else():
    async with doorbell.subscribe("a") as a, doorbell.subscribe("b") as b:
        assert await heard(a)  # the subscription itself rings
        assert await heard(b)
        await in_database(doorbell.ring, "a")
        assert await heard(a)
        assert not await heard(b, 0.1)


async def test_a_line_that_is_cut_is_made_again(valkey: Valkey):
    async with doorbell.subscribe("a") as bell:
        assert await heard(bell)
        valkey.client.client_kill_filter(_type="pubsub")
        assert await heard(bell)  # it asked anew for its topics
        await in_database(doorbell.ring, "a")
        assert await heard(bell)


async def test_a_topic_nobody_listens_to_any_more_is_given_back(valkey: Valkey):
    async with doorbell.subscribe("a") as a:
        assert await heard(a)
        async with doorbell.subscribe("b") as b:
            assert await heard(b)
        async with asyncio.timeout(3):
            while valkey.client.pubsub_channels() != [b"chatsite:bell:a"]:
                await asyncio.sleep(0.01)
    async with asyncio.timeout(3):
        while valkey.client.pubsub_channels():
            await asyncio.sleep(0.01)


async def test_a_silent_line_is_no_broken_one(valkey: Valkey, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("inference.redis_bell.PING_SECONDS", 0.2)
    monkeypatch.setattr("inference.redis_bell.SILENT_SECONDS", 0.5)
    async with doorbell.subscribe("a") as bell:
        assert await heard(bell)
        [line] = valkey.client.client_list(_type="pubsub")
        assert not await heard(bell, 1.5)  # it is not made again
        assert [c["id"] for c in valkey.client.client_list(_type="pubsub")] == [line["id"]]


# --- the circuit --------------------------------------------------------------------------
def test_a_redis_that_is_away_is_asked_seldom_and_noticed_when_it_is_back(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
):
    server = redis_server.Server(valkey.url)
    asked: list[int] = []
    answer: list[Any] = [OSError()]

    def command() -> str:
        asked.append(1)
        if answer[0]:
            raise answer[0]
        return "pong"

    for _ in range(20):
        with pytest.raises(redis_server.Away):
            server.call(command)
    assert len(asked) == 1
    assert server.is_away
    answer[0] = None
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert server.call(command) == "pong"
    assert not server.is_away


def test_a_full_redis_is_away_for_readers_too_until_it_takes_something(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    monkeypatch.setattr(redis_server, "TRY_AGAIN_SECONDS", 0.0)
    server = redis_server.Server(valkey.url)
    valkey.client.config_set("maxmemory", "1")
    try:
        for _ in range(3):
            with pytest.raises(redis_server.Away):
                server.call(lambda: server.client.set("a", "b"))
            with pytest.raises(redis_server.Away):
                server.call(lambda: server.client.get("a"))
    finally:
        valkey.client.config_set("maxmemory", "0")
    server.call(lambda: server.client.get("a"))
    assert not server.is_away
    said = [record.message for record in caplog.records if "Redis is" in record.message]
    assert [words.split(" (")[0] for words in said] == ["Redis is away", "Redis is back."]


def test_a_refused_connection_is_an_absence_and_names_no_password(caplog: Any):
    server = redis_server.Server("redis://:s3cret@127.0.0.1:1/0")
    with pytest.raises(redis_server.Away):
        server.call(server.client.ping)
    assert "away" in caplog.text
    assert "s3cret" not in caplog.text
