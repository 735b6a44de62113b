"""Readers that take almost nothing: what they cost, whom they hold up, how they come back."""

import asyncio
import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench.cluster import Cluster, running_cluster
from bench.faults import files_of
from bench.reader import Reader
from bench.site import Person, watch
from tests.cluster.conftest import needs_nginx
from tests.cluster.test_system import serving
from tests.faults.workers import ALL

pytestmark = needs_nginx
SLOW, READ_ON, BYTES_A_SECOND = 200, 20, 100
LATE = 50.0  # seconds: an answer this old fills every buffer at once
LONG = "although " * 3500  # a token each; with the rest of the page it is what a message may have


@pytest.fixture(scope="module")
def roomy() -> Iterator[Cluster]:
    limits = {"CONTEXT_TOKENS": "8192", "MAX_ANSWER_TOKENS": "4000", "MAX_QUEUED": "0"}
    with running_cluster(**limits) as made:
        yield made


class SlowSocket:
    """A WebSocket by hand, with next to no room in the system for what is not read yet."""

    def __init__(self, person: Person, url: str, generation: str) -> None:
        host, port = urlsplit(url).hostname, urlsplit(url).port
        self.line = socket.socket()
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self.line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # loopback's is 64 KB
        self.line.settimeout(20)
        self.line.connect((host, port))
        head = [
            "GET /ws/ HTTP/1.1", f"Host: {host}:{port}", f"Origin: {url}",
            "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Cookie: {person.cookies}",
        ]  # fmt: skip
        self.line.sendall("\r\n".join([*head, "", ""]).encode())
        self.heard = b""
        while b"\r\n\r\n" not in self.heard:
            self.heard += self.line.recv(1)
        assert self.heard.startswith(b"HTTP/1.1 101"), self.heard
        self.heard = b""
        self.opened_at = time.monotonic()
        frame = {"type": "watch", "generation": generation, "epoch": 0, "after": 0}
        data = json.dumps(frame).encode()
        # Masked by zeros: as they are.
        self.line.sendall(struct.pack("!BB4x", 0x81, 0x80 | len(data)) + data)

    def sip(self) -> None:
        self.line.setblocking(False)
        with contextlib.suppress(OSError):
            self.heard += self.line.recv(BYTES_A_SECOND)

    def gulp(self) -> None:
        """What there is, to the end."""
        self.line.settimeout(20)
        while data := self.line.recv(1 << 16):
            self.heard += data

    def frames(self) -> tuple[list[dict[str, Any]], int]:
        """And the code of the close, if there was one."""
        found: list[dict[str, Any]] = []
        at = 0
        while len(self.heard) >= at + 2:
            kind, size = self.heard[at] & 15, self.heard[at + 1]
            at += 2
            if size == 126:
                [size] = struct.unpack_from("!H", self.heard, at)
                at += 2
            data = self.heard[at : at + size]
            at += size
            if kind == 8:
                return found, int(struct.unpack("!H", data[:2])[0])
            if kind == 1 and len(data) == size:
                found.append(json.loads(data))
        return found, 0


def resident(pid: int) -> float:
    """Megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not ALL, reason="takes two minutes: make faults")
async def test_row_33_two_hundred_slow_readers_cost_little_and_hold_up_nobody(roomy: Cluster):
    person = await Person(roomy).arrive()
    url, pid = roomy.replicas[0], serving(roomy)[0]
    generation = await person.ask(f"echo {LONG}pace=40")
    heard: list[float] = []
    reading = asyncio.create_task(read_along(person, generation, url, heard))
    await asyncio.sleep(LATE)
    files, base, begun = files_of(pid), resident(pid), time.monotonic()
    slow = await asyncio.to_thread(
        lambda: [SlowSocket(person, url, generation) for _ in range(SLOW)]
    )
    grown = await most_of(slow, slow[-1].opened_at + 38, pid) - base
    late = slow[-READ_ON:]  # the others are closed although they take nothing
    with ThreadPoolExecutor(READ_ON) as pool:
        list(pool.map(SlowSocket.gulp, late))
    assert [one.frames()[1] for one in late] == [4008] * READ_ON
    while files_of(pid) > files + 5:
        assert time.monotonic() - slow[-1].opened_at < 60, "sockets of slow readers stay"
        await asyncio.sleep(0.2)
    spans = [(0, begun), (begun, slow[-1].opened_at + 5), (slow[-1].opened_at + 5, math.inf)]
    before, opening, after = [p99([at for at in heard if start < at < end]) for start, end in spans]
    print(f"grown {grown:.0f} MB, p99 {before:.3f}, {opening:.3f} while they come, {after:.3f} s")
    assert grown < 64
    assert opening < before + 0.5  # two hundred ask for two thousand events each
    assert after < before + 0.05  # generous: the machine is not ours alone
    texts = {await resumed(one, person, generation, url) for one in late[:5]}
    assert texts == {await reading} == {f"{LONG}pace=40"}


async def read_along(person: Person, generation: str, url: str, heard: list[float]) -> str:
    reader = Reader(person, generation)
    async with person.socket(url) as line:
        async for frame in watch(line, generation):
            reader.take(frame)
            heard.append(time.monotonic())
    return reader.text


async def most_of(slow: list[SlowSocket], end: float, pid: int) -> float:
    """The most memory the process had meanwhile."""
    most = 0.0
    while time.monotonic() < end:
        await asyncio.sleep(1)
        for one in slow:
            one.sip()
        most = max(most, resident(pid))
    return most


def p99(times: list[float]) -> float:
    """Of the seconds between them."""
    return quantiles([after - before for before, after in pairwise(times)], n=100)[-1]


async def resumed(one: SlowSocket, person: Person, generation: str, url: str) -> str:
    reader = Reader(person, generation)
    for frame in one.frames()[0]:
        if frame.get("generation") == generation:
            reader.take(frame)
    assert not reader.status
    await reader.finish(url)
    return reader.text
