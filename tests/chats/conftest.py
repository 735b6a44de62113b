"""A model to ask, and a hand that writes its answers: no worker runs in these tests."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import django
import pytest
from django.conf import settings

django.setup()  # pytest may read this file before pytest-django has set Django up


from chats.models import Chat, Message  # noqa: E402
from inference.database import close_connections  # noqa: E402
from inference.models import Generation, Model, Release, Worker  # noqa: E402


@pytest.fixture(autouse=True)
def _close_delivery() -> Iterator[None]:
    yield
    close_connections()


@pytest.fixture
def release(db: None) -> Release:
    model = Model.objects.create(slug=settings.MODEL, title="Test model")
    return Release.objects.create(
        model=model, version=1, engine="simulated", context_tokens=4096, state=Release.State.LIVE
    )


@pytest.fixture
def worker(release: Release) -> Worker:
    return Worker.objects.create(
        boot_id=uuid4(), node="here", pid=1, release=release, state=Worker.State.READY, slots=4
    )


class Pen:
    """Writes a run's log as a worker would."""

    def __init__(self, run: Generation) -> None:
        (self.run,) = Generation.objects.filter(pk=run.pk).claim(run.release, uuid4(), 1)
        self.tail = self.run.log.adopt(self.run.fence)
        self.seq, self.text = self.tail.seq, self.tail.text

    def write(self, *texts: str) -> "Pen":
        for text in texts:
            self.seq += 1
            self.text += text
            self.run.log.append(self.run.fence, self.seq, text, [])
        return self

    def end(self, kind: str = "done", finish_reason: str = "end") -> Generation:
        self.run.log.finish(
            self.run.fence, self.seq + 1, kind, text=self.text, finish_reason=finish_reason
        )
        return Generation.objects.get(pk=self.run.pk)


@pytest.fixture
def pen() -> Callable[[Message], Pen]:
    """`pen(answer).write("Hel", "lo").end()` is a whole answer."""

    def pen_for(answer: Message) -> Pen:
        assert answer.generation is not None
        return Pen(answer.generation)

    return pen_for


@pytest.fixture
def answered(alice: Any, release: Release, pen: Any) -> Message:
    """Alice's first answer, finished, with a title on its way."""
    answer = Chat.start(alice, "What is tea?", uuid4())
    pen(answer).write("Leaves ", "in water.").end()
    return Message.objects.get(pk=answer.pk)


def talk(user: Any, length: int, *, characters: int = 10) -> Chat:
    """A finished chat of `length` messages, made without asking a model."""
    chat = Chat.objects.create(user=user, title="Long")
    parent = None
    made = []
    for depth in range(length):
        role = Message.Role.ASSISTANT if depth % 2 else Message.Role.USER
        text = f"{depth} ".ljust(characters, "x")
        parent = Message(chat=chat, parent=parent, role=role, text=text, depth=depth, user=user)
        made.append(parent)
    Message.objects.bulk_create(made, batch_size=500)
    Chat.objects.filter(pk=chat.pk).update(leaf=parent)
    return Chat.objects.get(pk=chat.pk)
