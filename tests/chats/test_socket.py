"""The socket: the whole protocol, and everything a broken or hostile reader may do."""

import asyncio
import json
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection
from django.test import Client

from chats import consumers, frames, outbox, tail
from chats.consumers import ChatSocket, close_all
from chats.frames import FRAMES
from chats.looks import look
from chats.models import Chat, Message
from inference.models import Chunk, Generation, Worker

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
async def _close_connection():
    """Of the thread that `sync_to_async` and the ORM's asynchronous calls share."""
    yield
    await sync_to_async(lambda: connection.close())()  # its own, so looked up there


def cookie_of(user):
    client = Client()
    client.force_login(user)
    return client.cookies["session"].value


@asynccontextmanager
async def page(user=None, cookie="", stated="?protocol=1", told=1, greeted=True):
    cookie = cookie or (await sync_to_async(cookie_of)(user) if user else "")
    headers = [(b"cookie", f"session={cookie}".encode())]
    socket = WebsocketCommunicator(ChatSocket.as_asgi(), f"/ws/{stated}", headers)
    await socket.connect()
    if user and greeted:
        assert await next_frame(socket) == {"type": "hello", "protocol": told}
    yield socket
    await socket.disconnect()


async def next_frame(socket, timeout=3):
    message = await socket.receive_output(timeout)
    return message.get("code") or json.loads(message["text"])


async def next_of(socket, *kinds):
    while True:
        frame = await next_frame(socket)
        if isinstance(frame, int) or frame["type"] in kinds:
            return frame


async def tells_only_of_the_list(socket, seconds):
    """As it does once at first."""
    while not await socket.receive_nothing(seconds):
        if (await next_frame(socket))["type"] != "chats":
            return False
    return True


async def send(socket, **frame):
    await socket.send_to(text_data=json.dumps(frame, default=str))


async def watch(socket, run, epoch=0, after=0):
    await send(socket, type="watch", generation=run, epoch=epoch, after=after)


@sync_to_async
def start(user, text="Hi"):
    return Chat.start(user, text, uuid4())


async def test_an_answer_is_delivered_from_first_state_to_end(alice, worker, pen):
    answer = await start(alice)
    run = str(answer.generation_id)
    async with page(alice) as socket:
        await watch(socket, run)
        assert await next_frame(socket) == {
            "type": "state", "generation": run, "status": "queued", "position": 1, "wait": None,
        }  # fmt: skip
        hand = await sync_to_async(pen)(answer)
        await sync_to_async(hand.write)("Hé", "llo")
        assert (await next_of(socket, "state"))["status"] == "running"
        assert await next_of(socket, "delta") == {
            "type": "delta", "generation": run, "epoch": 0, "seq": 1, "offset": 0, "text": "Hé",
        }  # fmt: skip
        assert (await next_of(socket, "delta"))["offset"] == 2
        await sync_to_async(hand.end)()
        end = await next_of(socket, "end")
        assert (end["seq"], end["status"], end["epoch"]) == (3, "done", 0)
        assert "<p>Héllo</p>" in end["html"]


@pytest.mark.parametrize(
    ("stated", "told"),
    [("", 1), ("?protocol=1", 1), ("?protocol=2", 2), ("?protocol=3", 3), ("?protocol=4", 3),
     ("?protocol=", 1), ("?protocol=-1", 1), ("?protocol=x", 1), ("?protocol=99999999999", 1),
     ("?protocol=%ff%fe&protocol=2", 1)],
)  # fmt: skip
async def test_the_newest_protocol_that_page_and_server_know_is_spoken(
    alice, monkeypatch, stated, told
):
    monkeypatch.setattr(frames, "PROTOCOL", 3)
    async with page(alice, stated=stated, told=told) as socket:
        await send(socket, type="ping")
        assert (await next_of(socket, "pong"))["type"] == "pong"


@pytest.mark.parametrize("stated", ["", "?protocol=1"])
async def test_a_page_that_is_too_old_hears_of_the_newer_protocol_and_is_closed(
    alice, monkeypatch, stated
):
    monkeypatch.setattr(frames, "PROTOCOL", 3)
    monkeypatch.setattr(frames, "OLDEST", 2)
    async with page(alice, stated=stated, told=3) as socket:
        assert await next_of(socket) == 1003


async def test_a_reader_comes_back_and_gets_only_what_is_new(alice, release, pen):
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    await sync_to_async(hand.write)("a", "b", "c")
    async with page(alice) as socket:
        await watch(socket, answer.generation_id, after=2)
        assert (await next_of(socket, "delta"))["seq"] == 3
        await watch(socket, answer.generation_id, after=1)
        assert (await next_of(socket, "delta"))["seq"] == 2


async def test_a_reader_of_an_older_epoch_starts_again(alice, release, pen):
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    await sync_to_async(hand.write)("a")
    await Generation.objects.filter(pk=answer.generation_id).aupdate(epoch=1)
    await Chunk.objects.aupdate(epoch=1)
    async with page(alice) as socket:
        await watch(socket, answer.generation_id, epoch=0, after=1)
        reset = await next_of(socket, "reset")
        assert (reset["epoch"], reset["to"]) == (1, 0)
        assert (await next_of(socket, "delta"))["seq"] == 1


async def test_a_run_that_ended_long_ago_still_ends_once(alice, answered):
    await Chunk.objects.all().adelete()
    async with page(alice) as socket:
        await watch(socket, answered.generation_id, after=1)
        assert (await next_of(socket, "delta", "end"))["status"] == "done"
        assert await tells_only_of_the_list(socket, 0.3)


async def test_an_end_too_long_for_a_frame_comes_without_its_page(alice, release, pen):
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    await sync_to_async(hand.write)("long words " * 6000)
    await sync_to_async(hand.end)()
    async with page(alice) as socket:
        await watch(socket, answer.generation_id, after=1)
        assert (await next_of(socket, "end"))["html"] is None


async def test_loading_and_a_dead_worker_are_told(alice, worker, pen):
    await Worker.objects.aupdate(state="loading", percent_loaded=30)
    answer = await start(alice)
    async with page(alice) as socket:
        await watch(socket, answer.generation_id)
        state = await next_of(socket, "state")
        assert (state["status"], state["percent"]) == ("loading", 30)
        hand = await sync_to_async(pen)(answer)
        assert (await next_of(socket, "state"))["status"] == "running"
        await sync_to_async(Generation.objects.all().void_leases)(hand.run.boot_id)
        assert (await next_of(socket, "state"))["status"] == "resuming"


async def test_a_chat_and_the_list_tell_their_changes(alice, answered):
    async with page(alice) as socket:
        chat = await Chat.objects.aget()
        await send(socket, type="watch_chat", chat=chat.pk, version=chat.version)
        assert await next_frame(socket) == {"type": "chats"}  # the one at first
        await sync_to_async(chat.rename)("Tea")
        kinds = {"chat": await next_frame(socket), "chats": await next_frame(socket)}
        frames = {frame["type"]: frame for frame in kinds.values()}
        assert frames["chat"]["version"] == chat.version
        assert frames["chats"] == {"type": "chats"}


async def test_the_list_is_asked_for_anew_once_its_changes_are_told(alice):
    """What changed between the page and its socket was told to nobody."""
    async with page(alice) as socket:
        assert await next_frame(socket) == {"type": "chats"}
        assert await socket.receive_nothing(0.5)


async def test_a_change_between_page_and_socket_is_told_at_once(alice, answered):
    async with page(alice) as socket:
        await send(socket, type="watch_chat", chat=answered.chat_id, version=0)
        assert (await next_of(socket, "chat"))["chat"] == str(answered.chat_id)


async def test_unwatching_and_pinging(alice, release, pen):
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    async with page(alice) as socket:
        await watch(socket, answer.generation_id)
        await next_of(socket, "state")
        await send(socket, type="unwatch", generation=answer.generation_id)
        await send(socket, type="ping")
        assert await next_of(socket, "pong")
        await sync_to_async(hand.write)("a")
        assert await tells_only_of_the_list(socket, 0.5)


@pytest.mark.parametrize("kind", sorted(FRAMES))
async def test_a_strangers_frame_is_answered_like_an_unknown_id(alice, bob, answered, kind):
    answers = []
    for chat, run in ((answered.chat_id, answered.generation_id), (uuid4(), uuid4())):
        async with page(bob) as socket:
            await send(socket, type=kind, generation=run, chat=chat, epoch=0, after=0, version=0)
            await send(socket, type="ping")
            frames = [await next_frame(socket)]
            while frames[-1]["type"] != "pong":
                frames.append(await next_frame(socket))
        for frame in frames:
            assert frame.pop("generation", str(run)) == str(run)
            assert frame.pop("chat", str(chat)) == str(chat)
        answers.append(frames)
    assert answers[0] == answers[1]
    if kind.startswith("watch"):
        assert answers[0][0]["code"] == "not_found"


async def test_nobody_and_a_forged_session_are_sent_away():
    for cookie in ("", "x" * 32, "é\0", "../" * 99):
        async with page(cookie=cookie) as socket:
            assert await next_frame(socket) == 4401


async def test_a_database_that_stays_away_asks_the_page_to_come_back_later(
    alice, answered, monkeypatch
):
    def away(*args):
        raise OperationalError

    async with page(alice) as socket:
        monkeypatch.setattr(consumers, "DATABASE_SECONDS", 0.2)
        monkeypatch.setattr(consumers, "_authorise", away)
        await send(socket, type="ping")
        assert await next_frame(socket) == 1012


async def test_a_frame_after_the_session_ended_does_nothing(alice, answered):
    async with page(alice) as socket:
        await sync_to_async(Session.objects.all().delete)()
        await watch(socket, answered.generation_id)
        assert await next_frame(socket) == 4401


NOBODYS = str(UUID(int=7))
BAD_FRAMES = [
    " ", "{", "null", "[]", "1", '"watch"', "NaN", "[" * 10_000, '{"a":' * 3000, '{"type": NaN}',
    '{"type": []}', '{"type": {}}', '{"type": null}', '{"type": "end"}', '{"type": "\ud800"}',
    '{"type": "watch"}', '{"type": "watch", "generation": 1, "epoch": 0, "after": 0}',
    *(
        json.dumps({"type": "watch", "generation": i, "epoch": e, "after": a})
        for i, e, a in [
            (NOBODYS, -1, 0), (NOBODYS, True, 0), (NOBODYS, 0, 1.5),
            (NOBODYS, 0, 2**31), (NOBODYS, 0, "0"), (NOBODYS, None, 0),
            ("x" * 36, 0, 0), ("{" + NOBODYS.replace("-", "") + "}", 0, 0), ([], 0, 0),
            ("\0" * 36, 0, 0),
        ]
    ),
    '{"type": "watch", "generation": "x", "epoch": ' + "9" * 5000 + ', "after": 0}',
    '{"type": "watch_chat", "chat": {}, "version": 0}',
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_FRAMES)
async def test_a_malformed_frame_is_told_and_the_socket_goes_on(alice, text):
    async with page(alice) as socket:
        await socket.send_to(text_data=text)
        assert (await next_of(socket, "error"))["code"] == "malformed"
        await send(socket, type="ping")
        assert await next_of(socket, "pong", "error") == {"type": "pong"}


async def test_the_fifth_malformed_frame_closes(alice):
    async with page(alice) as socket:
        for _ in range(4):
            await socket.send_to(text_data="{")
        await socket.send_to(bytes_data=b"\x00\xff")
        for _ in range(5):
            assert (await next_of(socket, "error"))["code"] == "malformed"
        assert await next_of(socket) == 1003


async def test_a_frame_too_large_closes(alice):
    async with page(alice) as socket:
        await socket.send_to(
            text_data=json.dumps({"type": "ping", "x": "é" * 9000}, ensure_ascii=False)
        )
        assert (await next_of(socket, "error"))["code"] == "too_large"
        assert await next_of(socket) == 1009


async def test_a_page_may_watch_only_so_many_things(alice, release):
    runs = [(await start(alice)).generation_id for _ in range(17)]
    async with page(alice) as socket:
        for run in runs:
            await watch(socket, run)
        error = await next_of(socket, "error")
        assert (error["code"], error["generation"]) == ("too_many", str(runs[-1]))
        await watch(socket, runs[0])
        await send(socket, type="unwatch", generation=runs[0])
        await watch(socket, runs[-1])
        assert (await next_of(socket, "state", "error"))["type"] == "state"


async def test_a_reader_that_takes_nothing_is_closed(alice, release, pen, monkeypatch):
    monkeypatch.setattr(outbox, "UNDRAINED_SECONDS", 0.3)
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    await sync_to_async(hand.write)(*["x" * 100] * 20)
    cookie = await sync_to_async(cookie_of)(alice)
    inbox: asyncio.Queue[dict] = asyncio.Queue()
    sent: list[dict] = []
    taps = asyncio.Event()

    async def stuck_send(message):
        sent.append(message)
        if message["type"] == "websocket.send" and "delta" in message["text"]:
            await taps.wait()

    scope = {"type": "websocket", "headers": [(b"cookie", f"session={cookie}".encode())]}
    app = asyncio.create_task(ChatSocket.as_asgi()(scope, inbox.get, stuck_send))
    await inbox.put({"type": "websocket.connect"})
    frame = {"type": "watch", "generation": str(answer.generation_id), "epoch": 0, "after": 0}
    await inbox.put({"type": "websocket.receive", "text": json.dumps(frame)})
    async with asyncio.timeout(3):
        while sent[-1:] == [] or sent[-1]["type"] != "websocket.close":
            await asyncio.sleep(0.05)
    assert sent[-1]["code"] == 4008
    await inbox.put({"type": "websocket.disconnect", "code": 4008})
    await asyncio.wait_for(app, 3)


async def test_a_database_that_is_away_for_a_moment_costs_nothing(alice, release, pen, monkeypatch):
    from django.db import OperationalError

    monkeypatch.setattr(tail, "DATABASE_PAUSE_SECONDS", 0.05)
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    await sync_to_async(hand.write)("a")
    failures = iter([True, True])

    def shaky(*args):
        if next(failures, False):
            raise OperationalError("away")
        return look(*args)

    monkeypatch.setattr(tail, "look", shaky)
    async with page(alice) as socket:
        await watch(socket, answer.generation_id)
        assert (await next_of(socket, "delta"))["text"] == "a"


async def test_a_stopping_process_asks_its_pages_to_reconnect(alice):
    async with page(alice) as socket:
        await close_all(seconds=0)
        assert await next_frame(socket) == 1012


async def test_two_tabs_are_shown_the_same(alice, release, pen):
    answer = await start(alice)
    hand = await sync_to_async(pen)(answer)
    async with page(alice) as one, page(alice) as two:
        for tab in (one, two):
            await watch(tab, answer.generation_id)
        await sync_to_async(hand.write)(*"abcdef")
        await sync_to_async(hand.end)()
        texts = []
        for tab in (one, two):
            text, frame = "", await next_of(tab, "delta", "end")
            while frame["type"] == "delta":
                text, frame = text + frame["text"], await next_of(tab, "delta", "end")
            texts.append(text)
    assert texts == ["abcdef", "abcdef"]
    assert (await Message.objects.aget(pk=answer.pk)).text == "abcdef"
