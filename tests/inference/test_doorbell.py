"""A doorbell rings across processes, costs nothing when nobody listens, and may be lost."""

import asyncio
import os
import socket
import sys
import time

import pytest
from django.conf import settings

from inference import doorbell


async def test_a_ring_wakes_those_who_listen_to_its_topic_and_nobody_else():
    async with doorbell.subscribe("a") as a, doorbell.subscribe("b") as b:
        doorbell.ring("a")
        assert await a.wait(2)
        assert not await b.wait(0.05)


async def test_a_ring_before_the_wait_is_not_missed():
    async with doorbell.subscribe("a") as bell:
        doorbell.ring("a")
        await asyncio.sleep(0.05)
        assert await bell.wait(0.01)
        assert not await bell.wait(0.01)


async def test_one_listener_may_have_several_topics():
    async with doorbell.subscribe("a", "b") as bell:
        doorbell.ring("b")
        assert await bell.wait(2)


async def test_a_ring_comes_from_another_process():
    code = "import django; django.setup(); from inference import doorbell; doorbell.ring('far')"
    async with doorbell.subscribe("far") as bell:
        started = [sys.executable, "-c", code]
        process = await asyncio.create_subprocess_exec(*started, env=dict(os.environ))
        assert await bell.wait(20)
        await process.wait()


def test_ringing_with_nobody_there_is_harmless():
    doorbell.ring("nobody")


async def test_a_listener_that_died_is_forgotten():
    folder = doorbell.directory()
    folder.mkdir(parents=True, exist_ok=True)
    dead = folder / "1-dead.bell"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(dead))
    doorbell.ring("x")
    assert not dead.exists()


async def test_a_full_listener_never_blocks_the_one_who_rings():
    async with doorbell.subscribe("flood"):
        started = time.monotonic()
        for _ in range(3000):
            doorbell.ring("flood")
        assert time.monotonic() - started < 5


async def test_the_last_listener_leaves_no_file_behind():
    async with doorbell.subscribe("a"):
        assert list(doorbell.directory().glob(f"{os.getpid()}-*.bell"))
    assert not list(doorbell.directory().glob(f"{os.getpid()}-*.bell"))


def test_the_folder_is_the_owners_alone():
    assert settings.DATA_DIR
    folder = doorbell.directory()
    if folder.exists():
        assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("topic", ["gen:1", "work", "ünïcode"])
async def test_topics_are_any_short_text(topic: str):
    async with doorbell.subscribe(topic) as bell:
        doorbell.ring(topic)
        assert await bell.wait(2)
