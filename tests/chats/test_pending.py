"""Waiting messages beside the end that asks them."""

from threading import Event, Thread
from uuid import uuid4

import pytest
from django.db import connection, transaction

from chats.models import Chat, Message
from chats.pending import PendingMessage
from inference.models import Generation

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite locks the whole database")
@pytest.mark.parametrize("verb", ["reword", "withdraw"])
def test_who_changes_a_waiting_message_does_not_stand_in_the_way_of_an_end(answered, verb):
    chat = Chat.objects.get()
    item = PendingMessage.objects.create(chat=chat, user=chat.user, text="Then?", client_id=uuid4())
    begun = Event()

    def change() -> None:
        begun.set()
        item.reword("And then?") if verb == "reword" else item.withdraw()
        connection.close()

    with transaction.atomic():
        chat.lock()
        other = Thread(target=change)
        other.start()
        begun.wait()
        other.join(0.3)
        assert chat.ask_next() is not None  # a deadlock when the other has the message already
    other.join()
    assert Message.objects.filter(text="Then?").count() == 1
    assert not PendingMessage.objects.exists()


def test_a_waiting_message_asked_beside_an_answer_counts_as_one_more(
    alice, signed_in, release, settings
):
    settings.MAX_RUNS_EACH = 2
    client = signed_in(alice)

    def post(url, **data):
        return client.post(url, data, headers={"accept": "application/json"})

    post("/chats/", text="Hello", client_id=uuid4())
    ended = Message.objects.get(role="assistant")
    Generation.objects.get().cancel()
    post(f"/messages/{ended.pk}/versions/", client_id=uuid4())
    chat = Chat.objects.get()
    url = f"/chats/{chat.pk}"
    post(f"{url}/messages/", text="And then?", client_id=uuid4())
    held = chat.pending.get()
    post("/chats/", text="Hello again", client_id=uuid4())
    post(f"{url}/branch/", message=ended.pk)
    assert post(f"/pending/{held.pk}/", now=1).status_code == 429
    assert chat.pending.exists()
    Generation.objects.filter(status="queued").latest("pk").cancel()
    assert post(f"/pending/{held.pk}/", now=1).status_code == 200
    assert not chat.pending.exists()


def test_the_ids_of_waiting_messages_open_no_way_round_the_limits(
    alice, signed_in, release, settings
):
    client = signed_in(alice)

    def post(url, **data):
        return client.post(url, data, headers={"accept": "application/json"})

    post("/chats/", text="Hello", client_id=uuid4())
    chat = Chat.objects.get()
    held = uuid4()
    post(f"/chats/{chat.pk}/messages/", text="And then?", client_id=held)
    settings.MAX_RUNS_EACH = 1
    question = chat.messages.get(role="user")
    assert post("/chats/", text="And then?", client_id=held).status_code == 429
    edit = {"text": "And then?", "client_id": held, "edits": question.pk}
    assert post(f"/chats/{chat.pk}/messages/", **edit).status_code == 429
    answer = chat.messages.get(role="assistant")
    assert post(f"/messages/{answer.pk}/versions/", client_id=held).status_code == 429
    again = post(f"/chats/{chat.pk}/messages/", text="And then?", client_id=held)
    assert again.status_code == 200  # the repeat of the send itself
