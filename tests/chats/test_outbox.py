"""The way out of a socket."""

import asyncio
import json

from chats import outbox


async def test_a_full_outbox_makes_its_writers_wait(monkeypatch):
    monkeypatch.setattr(outbox, "MAX_EVENTS", 3)
    gate, sent = asyncio.Semaphore(0), []

    async def slow(text):
        await gate.acquire()
        sent.append(json.loads(text)["n"])

    box = outbox.Outbox(slow)
    sender = asyncio.create_task(box.run())

    async def fill():
        for n in range(10):
            await box.put({"n": n})

    filling = asyncio.create_task(fill())
    await asyncio.sleep(0.05)
    assert not filling.done()
    for _ in range(10):
        gate.release()
    await asyncio.wait_for(filling, 1)
    await asyncio.wait_for(box.empty(), 1)
    assert sent == list(range(10))
    sender.cancel()
