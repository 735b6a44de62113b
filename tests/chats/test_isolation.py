"""Bob with Alice's ids: over every address and every frame, the answer of an unknown id.

The addresses and frames come from the code's own registries: a new one without a row here fails.
"""

from uuid import uuid4

import pytest
from django.test import Client

from chats.frames import FRAMES
from chats.models import Chat, Message
from chats.pending import PendingMessage
from chats.urls import urlpatterns
from inference.models import Generation

pytestmark = pytest.mark.django_db
JSON = {"accept": "application/json"}
NOT_BY_ID = {"home", "chats"}  # these show or make the caller's own only
METHODS = {
    "chat": ["get"],
    "transcript": ["get"],
    "messages": ["post"],
    "branch": ["post"],
    "title": ["post"],
    "deletion": ["post"],
    "versions": ["post"],
    "continuation": ["post"],
    "details": ["get"],
    "generation": ["get", "post", "delete"],
    "pending": ["post", "delete"],
}
FRAMES_WITH_IDS = {"watch": "generation", "watch_chat": "chat", "unwatch": None, "ping": None}


@pytest.fixture
def hers(alice, answered):
    held = PendingMessage.objects.create(
        chat=answered.chat, user=alice, text="Later", client_id=uuid4()
    )
    return {
        "chat_id": answered.chat_id,
        "message_id": answered.pk,
        "generation_id": answered.generation_id,
        "pending_id": held.pk,
    }


def addresses(ids):
    for pattern in urlpatterns:
        if pattern.name in NOT_BY_ID:
            continue
        (name,) = pattern.pattern.converters
        route = str(pattern.pattern).replace(f"<uuid:{name}>", str(ids[name]))
        for method in METHODS[str(pattern.name)]:
            yield method, f"/{route}"


def snapshot():
    return [list(model.objects.values().order_by("pk")) for model in MODELS]


MODELS = (Chat, Message, PendingMessage, Generation)


def test_every_address_has_a_row():
    assert {pattern.name for pattern in urlpatterns} == NOT_BY_ID | set(METHODS)


def test_every_frame_has_a_row():
    assert set(FRAMES) == set(FRAMES_WITH_IDS)


@pytest.mark.parametrize("who", ["bob", "charlie", "nobody"])
def test_a_stranger_gets_the_404_of_an_unknown_id(hers, signed_in, request, who):
    client = Client() if who == "nobody" else signed_in(request.getfixturevalue(who))
    unknown = dict.fromkeys(hers, uuid4())
    data = {"text": "x", "title": "x", "message": hers["message_id"], "now": 1, "undo": 1}
    before = snapshot()
    for (method, url), (_, other) in zip(addresses(hers), addresses(unknown), strict=True):
        for headers in ({}, JSON):
            body = data if method == "post" else None
            mine = getattr(client, method)(url, body, headers=headers)
            theirs = getattr(client, method)(other, body, headers=headers)
            assert mine.status_code == theirs.status_code == 404, (method, url)
            assert _without_tokens(mine) == _without_tokens(theirs)
    assert snapshot() == before


def _without_tokens(response):
    if response["Content-Type"] == "application/json":
        return response.json()
    return [template.name for template in response.templates]


def test_her_messages_cannot_be_reached_through_his_chat(hers, bob, release, signed_in):
    client = signed_in(bob)
    chat = Chat.start(bob, "Mine", uuid4()).chat
    for field in ("parent", "edits"):
        data = {"text": "x", field: hers["message_id"]}
        assert client.post(f"/chats/{chat.pk}/messages/", data).status_code == 404
    data = {"message": hers["message_id"]}
    assert client.post(f"/chats/{chat.pk}/branch/", data).status_code == 404
    for part in ("", "transcript/"):
        url = f"/chats/{chat.pk}/{part}?before={hers['message_id']}"
        assert client.get(url).status_code == 404


def test_his_list_does_not_show_her_chats(hers, bob, signed_in):
    for query in ("", "?fragment=1"):
        assert str(hers["chat_id"]) not in signed_in(bob).get(f"/chats/{query}").content.decode()


def test_a_deleted_chat_is_gone_by_every_address(hers, alice, signed_in):
    Chat.objects.get(pk=hers["chat_id"]).discard()
    client = signed_in(alice)
    for method, url in addresses(hers):
        if "/generations/" not in url and "/deletion/" not in url:
            assert getattr(client, method)(url, {"text": "x"}).status_code == 404, url
