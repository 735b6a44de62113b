"""The socket: it only delivers. Writes go over HTTP, truth is in the log and the tables."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID
from weakref import WeakSet

from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer

from accounts.models import User
from chats import tail
from chats.frames import (
    MAX_FRAME_BYTES,
    ClientFrame,
    Malformed,
    Ping,
    Unwatch,
    Watch,
    WatchChat,
    parse,
    spoken_protocol,
    stated_protocol,
)
from chats.keeper import keeper
from chats.models import Chat
from chats.outbox import Outbox, TooSlow
from chats.sessions import Standing, people_of, person_of, session_key
from inference.batch import batch
from inference.models import Generation

logger = logging.getLogger(__name__)
MAX_WATCHES = 16
MAX_MALFORMED = 5
CLOSE_SECONDS = 5.0
DATABASE_SECONDS = 20.0
LAST_LOOK_SECONDS = 1.5  # a reader whose ring was lost looks once a second
T = TypeVar("T")
SESSION_OVER, READER_TOO_SLOW, TOO_MANY, TOO_LARGE, UNSUPPORTED, RESTARTING, BROKEN = (
    4401, 4008, 4429, 1009, 1003, 1012, 1011,
)  # fmt: skip

open_sockets: "WeakSet[ChatSocket]" = WeakSet()


class ChatSocket(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels has no types
    """One browser page. Each thing it watches is followed by a task of its own."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.tasks: dict[object, asyncio.Task[None]] = {}
        self.malformed = 0
        self.is_closing = False
        self.outbox = Outbox(self.send)
        self.app = asyncio.current_task()
        open_sockets.add(self)
        try:
            await super().__call__(scope, receive, send)
        finally:
            keeper().remove(self)
            self._cancel_tasks()

    async def dispatch(self, message: dict[str, Any]) -> None:
        # Not the base class's: that hops through the one database thread for every frame.
        await getattr(self, message["type"].replace(".", "_"))(message)

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        raise StopConsumer

    async def connect(self) -> None:
        await self.accept()
        self.session_key = session_key(self.scope)
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                person, self.standing = await batch("people", _people).ask(self.session_key)
        except TimeoutError:
            await self._close(RESTARTING)
            return
        if person is None:
            await self._close(SESSION_OVER)
            return
        if not keeper().has_room_for(person):
            await self._close(TOO_MANY)
            return
        self.user = person
        keeper().add(self)
        self._start("outbox", self.outbox.run)
        self._start("list", lambda: self._forward(tail.follow_list(person.pk)))
        await self._greet(stated_protocol(self.scope.get("query_string", b"")))
        self.scope["headers"].clear()  # a browser's take 3 KB, and the page may stay for days

    async def _greet(self, stated: int) -> None:
        """A page that hears of a newer protocol than its own loads itself anew."""
        spoken = spoken_protocol(stated)
        await self.outbox.put({"type": "hello", "protocol": spoken})
        if spoken > stated:
            await self._close(UNSUPPORTED)

    # --- frames in ------------------------------------------------------------------------
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if self.is_closing:
            return
        try:
            await asyncio.sleep(keeper().pause_for(self.user))
            await self._receive(text_data)
        except Malformed as error:
            await self._count_malformed(str(error))
        except TooSlow:
            await self._close(READER_TOO_SLOW)
        except TimeoutError:
            await self._close(RESTARTING)  # the page comes back when the database does

    async def _receive(self, text: str | None) -> None:
        if text is None:
            raise Malformed("Frames are text.")
        if len(text.encode(errors="replace")) > MAX_FRAME_BYTES:
            await self._error("too_large", "A frame may have 16 KiB.")
            await self._close(TOO_LARGE)
            return
        frame = parse(text)
        person, is_visible = await _soon(_authorise, self.session_key, frame)
        if person != self.user:
            await self._close(SESSION_OVER)
        elif is_visible:
            await HANDLERS[type(frame)](self, frame)
        else:
            await self._refuse(frame)

    async def _count_malformed(self, sentence: str) -> None:
        self.malformed += 1
        await self._error("malformed", sentence)
        if self.malformed >= MAX_MALFORMED:
            await self._close(UNSUPPORTED)

    async def _refuse(self, frame: ClientFrame) -> None:
        if isinstance(frame, Watch):
            await self._error("not_found", "There is no such run.", generation=frame.generation)
        elif isinstance(frame, WatchChat):
            await self._error("not_found", "There is no such chat.", chat=frame.chat)

    async def watch(self, frame: Watch) -> None:
        run = tail.follow_generation(frame.generation, frame.epoch, frame.after)
        await self._watch(frame.generation, run, generation=frame.generation)

    async def unwatch(self, frame: Unwatch) -> None:
        self._stop(frame.generation)

    async def watch_chat(self, frame: WatchChat) -> None:
        chat = tail.follow_chat(self.user.pk, frame.chat, frame.version)
        await self._watch(f"chat {frame.chat}", chat, chat=frame.chat)

    async def ping(self, frame: Ping) -> None:
        await self.outbox.put(keeper().sign_of_life())

    # --- frames out -----------------------------------------------------------------------
    async def _watch(
        self, key: object, frames: AsyncIterator[dict[str, Any]], **about: object
    ) -> None:
        self._stop(key)
        if len(self.tasks) - len(OWN_TASKS) >= MAX_WATCHES:
            await self._error("too_many", f"A page may watch {MAX_WATCHES} things.", **about)
            return
        self._start(key, lambda: self._forward(frames))

    async def _forward(self, frames: AsyncIterator[dict[str, Any]]) -> None:
        async with contextlib.aclosing(frames) as source:  # type: ignore[type-var]
            async for frame in source:
                await self.outbox.put(frame)

    async def _error(self, code: str, sentence: str, **about: object) -> None:
        await self.outbox.put({"type": "error", "code": code, "message": sentence, **about})

    async def leave(self) -> None:
        await self._close(SESSION_OVER)

    async def restart(self) -> None:
        """Ends that are just due are shown first: it may be that no other process is left."""
        answers = [task for key, task in self.tasks.items() if isinstance(key, UUID)]
        if answers:
            await asyncio.wait(answers, timeout=LAST_LOOK_SECONDS)
        await self._close(RESTARTING)

    # --- tasks and the end ----------------------------------------------------------------
    def _start(self, key: object, work: Callable[[], Awaitable[None]]) -> None:
        self.tasks[key] = asyncio.create_task(self._supervise(key, work))

    async def _supervise(self, key: object, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except TooSlow:
            await self._close(READER_TOO_SLOW)
        except Exception as error:
            # Whatever it was, the page reconnects and resumes by (epoch, seq).
            has_left = key == "outbox" and isinstance(error, OSError)  # its end is on its way here
            if not has_left:
                logger.exception("A task of a socket failed")
            await self._close(BROKEN)
        finally:
            if self.tasks.get(key) is asyncio.current_task():
                del self.tasks[key]

    def _stop(self, key: object) -> None:
        task = self.tasks.pop(key, None)
        if task:
            task.cancel()

    def _cancel_tasks(self) -> None:
        for task in list(self.tasks.values()):
            if task is not asyncio.current_task():
                task.cancel()

    async def _close(self, code: int) -> None:
        """Close once; what is queued goes out first when the close is about the last frame."""
        if self.is_closing:
            return
        self.is_closing = True
        with contextlib.suppress(TooSlow, TimeoutError):
            if code in {TOO_LARGE, UNSUPPORTED, RESTARTING}:
                await asyncio.wait_for(self.outbox.empty(), CLOSE_SECONDS)
        self._cancel_tasks()
        try:
            await asyncio.wait_for(self.close(code), CLOSE_SECONDS)
        except Exception:
            # The connection is stuck: end its application, and the server drops it.
            if self.app and self.app is not asyncio.current_task():
                self.app.cancel()


async def _people(keys: list[str]) -> list[tuple[User | None, Standing]]:
    """All who come back after a break of the line are looked up together."""
    return await _soon(people_of, keys)


async def _soon(look: Callable[..., T], *args: Any) -> T:
    """Read patiently, for a while: nobody may leave as long as a frame of theirs is at work.

    Raises TimeoutError.
    """
    async with asyncio.timeout(DATABASE_SECONDS):
        return await tail.patiently(look, *args)


OWN_TASKS = ("outbox", "list")
HANDLERS: dict[type[ClientFrame], Callable[[ChatSocket, Any], Awaitable[None]]] = {
    Watch: ChatSocket.watch,
    Unwatch: ChatSocket.unwatch,
    WatchChat: ChatSocket.watch_chat,
    Ping: ChatSocket.ping,
}


def _authorise(session_key: str, frame: ClientFrame) -> tuple[User | None, bool]:
    """Who is asking now, and whether what the frame names is theirs."""
    person, _ = person_of(session_key)
    if person is None:
        return None, False
    if isinstance(frame, Watch):
        return person, Generation.objects.visible_to(person).filter(pk=frame.generation).exists()
    if isinstance(frame, WatchChat):
        return person, Chat.objects.visible_to(person).filter(pk=frame.chat).exists()
    return person, True


async def close_all(seconds: float = 10.0) -> None:
    """Ask every page to reconnect elsewhere (1012), spread over `seconds`: this process stops."""

    async def close_later(socket: ChatSocket) -> None:
        await asyncio.sleep(random.uniform(0, seconds))
        await socket.restart()

    await asyncio.gather(*map(close_later, list(open_sockets)), return_exceptions=True)
