"""The addresses: pages and JSON, good input and bad."""
# Rows made a line above are known to have what the schema leaves optional.
# mypy: disable-error-code="union-attr, arg-type"

import json
from io import BytesIO
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from django.http import HttpResponse
from django.test import Client

from accounts.models import User
from chats.models import Chat, Message
from chatsite.encoding import whole_only
from inference.models import Generation

pytestmark = pytest.mark.django_db
JSON = {"accept": "application/json"}
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def client_of_alice(alice, signed_in):
    return signed_in(alice)


def post(client, url, **data):
    return client.post(url, data, headers=JSON)


def test_the_first_sight_makes_nobody(client, release):
    response = client.get("/")
    assert response.status_code == 200
    assert not User.objects.exists()


def test_a_stranger_becomes_a_guest_by_asking(client, release):
    response = client.post("/chats/", {"text": "Hello", "client_id": uuid4()})
    chat = Chat.objects.get()
    assert response.status_code == 303
    assert response.url.startswith(f"/chats/{chat.pk}/")
    assert chat.user.is_guest
    page = client.get(response.url)
    assert "Hello" in page.content.decode()


def test_a_start_in_json_has_what_the_page_needs(client_of_alice, release):
    body = post(client_of_alice, "/chats/", text="Hello", client_id=uuid4()).json()
    answer = Message.objects.get(role="assistant")
    assert body["chat"] == str(answer.chat_id)
    assert body["message"] == str(answer.pk)
    assert body["url"] == f"/chats/{answer.chat_id}/"
    assert body["version"] == Chat.objects.get().version
    assert body["html"].count("<article") == 2


def test_a_repeated_send_is_answered_the_same(client_of_alice, release):
    data = {"text": "Hello", "client_id": uuid4()}
    first, second = (post(client_of_alice, "/chats/", **data).json() for _ in range(2))
    assert first.pop("html").count("<article") == second.pop("html").count("<article") == 2
    assert first == second
    data["text"] = "Other"
    refused = post(client_of_alice, "/chats/", **data)
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "client_id_reused"


def test_asking_below_the_leaf_and_while_it_is_busy(client_of_alice, answered):
    url = f"/chats/{answered.chat_id}/messages/"
    body = post(client_of_alice, url, text="More", client_id=uuid4()).json()
    assert "message" in body
    body = post(client_of_alice, url, text="And more", client_id=uuid4()).json()
    assert body["pending"] == str(Chat.objects.get().pending.get().pk)
    assert "And more" in body["html"]


def test_editing_makes_a_sibling(client_of_alice, answered):
    answered.chat.rename("Drinks")  # else it is called by its first question
    url = f"/chats/{answered.chat_id}/messages/"
    post(client_of_alice, url, text="What is coffee?", edits=answered.parent_id)
    page = client_of_alice.get(f"/chats/{answered.chat_id}/").content.decode()
    assert "What is coffee?" in page
    assert "What is tea?" not in page
    post(client_of_alice, f"/chats/{answered.chat_id}/branch/", message=answered.parent_id)
    page = client_of_alice.get(f"/chats/{answered.chat_id}/").content.decode()
    assert "Leaves in water." in page


def test_a_question_can_be_asked_below_an_older_answer(client_of_alice, answered, pen):
    pen(answered.chat.ask("More", uuid4())).write("More.").end()
    url = f"/chats/{answered.chat_id}/messages/"
    body = post(client_of_alice, url, text="Instead", parent=answered.pk).json()
    assert Message.objects.get(pk=body["message"]).parent.parent_id == answered.pk


def test_answering_again_and_continuing(client_of_alice, answered, pen):
    body = post(client_of_alice, f"/messages/{answered.pk}/versions/", client_id=uuid4()).json()
    again = Message.objects.get(pk=body["message"])
    assert again.parent_id == answered.parent_id
    pen(again).write("Some").end("stopped", "")
    url = f"/messages/{again.pk}/continuation/"
    client_id = uuid4()
    first = post(client_of_alice, url, client_id=client_id)
    assert first.json()["message"] == str(again.pk)
    assert post(client_of_alice, url, client_id=client_id).json() == first.json()
    assert Generation.objects.filter(purpose="chat").count() == 3


def test_an_answer_that_was_asked_on_from_is_not_continued(client_of_alice, answered, pen):
    body = post(client_of_alice, f"/messages/{answered.pk}/versions/", client_id=uuid4()).json()
    again = Message.objects.get(pk=body["message"])
    pen(again).write("Some").end("stopped", "")
    page = f"/chats/{answered.chat_id}/"
    assert "Continue" in client_of_alice.get(page).content.decode()
    pen(again.chat.ask("More", uuid4())).write("More.").end()
    assert "Continue" not in client_of_alice.get(page).content.decode()
    response = post(client_of_alice, f"/messages/{again.pk}/continuation/")
    assert response.status_code == 409
    assert "gone on since" in response.json()["error"]["message"]


def test_continuing_a_complete_answer_is_refused(client_of_alice, answered):
    response = post(client_of_alice, f"/messages/{answered.pk}/continuation/")
    assert response.status_code == 409


def test_stopping_is_idempotent_and_told(client_of_alice, release):
    answer = Chat.start(User.objects.get(), "Hi", uuid4())
    url = f"/generations/{answer.generation_id}/"
    for _ in range(2):
        response = client_of_alice.delete(url, headers=JSON)
        assert response.json()["status"] == "stopped"
    assert client_of_alice.post(url, {"_method": "delete"}).status_code == 303


def test_the_status_of_a_run_has_its_text(client_of_alice, release, pen):
    answer = Chat.start(User.objects.get(), "Hi", uuid4())
    hand = pen(answer).write("Hel", "lo")
    url = f"/generations/{answer.generation_id}/"
    expected = {"status": "running", "seq": 2, "epoch": 0, "text": "Hello"}
    assert client_of_alice.get(url).json() == expected
    hand.end()
    assert client_of_alice.get(url).json() == {**expected, "status": "done", "seq": 3}


def test_a_chat_is_renamed_deleted_and_brought_back(client_of_alice, answered):
    url = f"/chats/{answered.chat_id}/"
    assert client_of_alice.post(f"{url}title/", {"title": " My  tea "}).status_code == 303
    assert Chat.objects.get().title == "My tea"
    assert client_of_alice.post(f"{url}deletion/").status_code == 303
    assert client_of_alice.get(url).status_code == 404
    assert client_of_alice.post(f"{url}deletion/", {"undo": 1}).status_code == 303
    assert client_of_alice.get(url).status_code == 200


def test_a_waiting_message_is_reworded_sent_now_and_taken_back(client_of_alice, release):
    chat = Chat.start(User.objects.get(), "Hi", uuid4()).chat
    first, second = chat.ask("one", uuid4()), chat.ask("two", uuid4())
    assert client_of_alice.post(f"/pending/{first.pk}/", {"text": "uno"}).status_code == 303
    assert client_of_alice.delete(f"/pending/{second.pk}/").status_code == 303
    assert [item.text for item in chat.pending.all()] == ["uno"]
    assert client_of_alice.post(f"/pending/{first.pk}/", {"now": 1}).status_code == 303
    assert Message.objects.filter(role="user", text="uno").exists()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "blank"),
        (" \n\t\u200b ", "blank"),
        ("x" * 1_000_000, "too_long"),
        ("a\0b", "bad_text"),
    ],
)
def test_bad_text_is_refused_with_a_sentence(client_of_alice, answered, text, code):
    for url in ("/chats/", f"/chats/{answered.chat_id}/messages/"):
        response = post(client_of_alice, url, text=text)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == code
        assert client_of_alice.post(url, {"text": text}).status_code == 400
    assert Message.objects.count() == 2


@pytest.mark.parametrize("raw", ["text=%ED%A0%80", "text=%FF%FE", "text=a%C3", "text=%00"])
def test_a_form_that_is_not_utf8_is_refused(client_of_alice, release, raw):
    response = client_of_alice.post("/chats/", raw, content_type=FORM, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_text"


@pytest.mark.parametrize("name", ["client_id", "parent", "edits"])
@pytest.mark.parametrize("value", ["x", "0", "../..", "é" * 40, "1" * 5000])
def test_bad_ids_are_refused(client_of_alice, answered, name, value):
    url = f"/chats/{answered.chat_id}/messages/"
    response = post(client_of_alice, url, text="Hi", **{name: value})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "bad_id"


@pytest.mark.parametrize("name", ["parent", "edits"])
def test_unknown_ids_are_not_found(client_of_alice, answered, name):
    url = f"/chats/{answered.chat_id}/messages/"
    response = post(client_of_alice, url, text="Hi", **{name: uuid4()})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_other_bodies_than_forms_are_refused_kindly(client_of_alice, answered):
    url = f"/chats/{answered.chat_id}/messages/"
    for body, kind in (
        (json.dumps({"text": "Hi"}), "application/json"),
        ("[" * 10_000, "application/json"),
        ("text=Hi", "text/plain"),
        ("--x\r\nbroken", "multipart/form-data; boundary=x"),
        ("--x\r\nbroken", "multipart/form-data"),
        ("&".join(f"a{n}=1" for n in range(2000)), FORM),
    ):
        assert client_of_alice.post(url, body, content_type=kind, headers=JSON).status_code == 400


@pytest.mark.parametrize("charset", ["latin-1", "utf-7", "utf-16"])
def test_a_form_in_another_character_set_is_refused_kindly(client_of_alice, answered, charset):
    url, kind = f"/chats/{answered.chat_id}/messages/", f"{FORM}; charset={charset}"
    refused = client_of_alice.post(url, "text=Hi", content_type=kind, headers=JSON)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "bad_text")


class Broken(BytesIO):
    def read(self, *_):
        raise ConnectionResetError


@pytest.mark.parametrize("stream", [BytesIO, Broken])
def test_a_form_that_broke_off_is_refused_in_a_cluster_too(rf, stream):
    """There, pages are served without the part that reads bodies for the embedded site."""
    body = b"text=Do+not"
    request = rf.generic("POST", "/chats/", body, content_type=FORM, headers=JSON)
    request.META["CONTENT_LENGTH"] = str(len(body) + 7)
    request._stream = stream(body)
    refused = whole_only(lambda request: HttpResponse(request.body))(request)
    assert (refused.status_code, b"broken_off" in refused.content) == (400, True)


@pytest.mark.parametrize("cursor", ["x", "1_", f"{'9' * 40}_{UUID(int=7).hex}", "1_zz", "%00"])
def test_bad_cursors_are_not_found(client_of_alice, answered, cursor):
    assert client_of_alice.get(f"/chats/?before={cursor}").status_code == 404
    assert client_of_alice.get(f"/chats/{answered.chat_id}/?before={cursor}").status_code == 404


def test_bad_titles_are_refused(client_of_alice, answered):
    for title in ("", "  ", "x" * 121, "a\0b"):
        url = f"/chats/{answered.chat_id}/title/"
        assert post(client_of_alice, url, title=title).status_code == 400
        assert client_of_alice.post(url, {"title": title}).status_code == 400


def test_the_text_survives_a_refusal(client_of_alice, answered):
    text = "y" * 40_000
    response = client_of_alice.post(f"/chats/{answered.chat_id}/messages/", {"text": text})
    assert response.status_code == 400
    assert response.context["composer_text"] == text
    assert "32,000" in response.context["composer_error"]


def test_without_a_model_a_send_is_refused_and_makes_no_guest(client):
    response = client.post("/chats/", {"text": "Hi"}, headers=JSON)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_model"
    assert client.post("/chats/", {"text": "Hi"}).status_code == 503
    assert not User.objects.exists()


def test_too_many_sends_are_told_how_long_to_wait(client_of_alice, release, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "send": "2/m"}
    data = {"text": "Hi", "client_id": uuid4()}
    post(client_of_alice, "/chats/", **data)
    post(client_of_alice, "/chats/", text="Hi")
    refused = post(client_of_alice, "/chats/", text="Hi")
    assert refused.status_code == 429
    assert refused.json()["error"]["retry_after"] == int(refused["Retry-After"]) > 0
    page = client_of_alice.post("/chats/", {"text": "My long text"})
    assert page.status_code == 429
    assert page.context["composer_text"] == "My long text"
    assert post(client_of_alice, "/chats/", **data).status_code == 200


def test_every_write_needs_a_csrf_token(alice, answered):
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    chat, run = answered.chat_id, answered.generation_id
    for method, url in (
        ("post", "/chats/"),
        ("post", f"/chats/{chat}/messages/"),
        ("post", f"/chats/{chat}/branch/"),
        ("post", f"/chats/{chat}/title/"),
        ("post", f"/chats/{chat}/deletion/"),
        ("post", f"/messages/{answered.pk}/versions/"),
        ("post", f"/messages/{answered.pk}/continuation/"),
        ("post", f"/generations/{run}/"),
        ("delete", f"/generations/{run}/"),
        ("delete", f"/pending/{UUID(int=7)}/"),
    ):
        assert getattr(client, method)(url).status_code == 403


def test_reading_changes_nothing_and_writing_needs_post(client_of_alice, answered):
    for part in ("messages", "branch", "title", "deletion"):
        assert client_of_alice.get(f"/chats/{answered.chat_id}/{part}/").status_code == 405
    assert client_of_alice.get(f"/messages/{answered.pk}/versions/").status_code == 405
    assert client_of_alice.put(f"/pending/{uuid4()}/").status_code == 405


def test_ids_have_one_spelling(client_of_alice, answered):
    spelt = str(answered.chat_id)
    for other in (spelt.upper(), spelt.replace("-", ""), f"{{{spelt}}}", quote(spelt + "\0")):
        assert client_of_alice.get(f"/chats/{other}/").status_code == 404


def test_the_list_and_the_fragments(client_of_alice, answered):
    assert client_of_alice.get("/chats/").status_code == 200
    fragment = client_of_alice.get("/chats/?fragment=1").content.decode()
    assert str(answered.chat_id) in fragment
    assert "<html" not in fragment
    fragment = client_of_alice.get(f"/chats/{answered.chat_id}/transcript/").content.decode()
    assert f"message-{answered.pk}" in fragment
    assert "<html" not in fragment


def test_without_javascript_a_deleted_chat_can_be_brought_back_by_a_button(
    client_of_alice, release
):
    client_of_alice.post("/chats/", {"text": "Hello", "client_id": uuid4()})
    chat = Chat.objects.get()
    page = client_of_alice.post(f"/chats/{chat.pk}/deletion/", follow=True).content.decode()
    assert f'formaction="/chats/{chat.pk}/deletion/"' in page
    client_of_alice.post(f"/chats/{chat.pk}/deletion/", {"undo": "1"})
    assert Chat.objects.visible_to(chat.user).exists()


def test_changes_are_counted_and_a_stop_is_never_refused(client_of_alice, release, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "change": "2/m"}
    made = post(client_of_alice, "/chats/", text="Hello", client_id=uuid4()).json()
    url = f"{made['url']}title/"
    statuses = [post(client_of_alice, url, title=name).status_code for name in "abc"]
    assert statuses == [200, 200, 429]
    assert Chat.objects.get().title == "b"
    run = Generation.objects.get()
    stop = client_of_alice.post(f"/generations/{run.pk}/", {"_method": "delete"}, headers=JSON)
    assert stop.json()["status"] == "stopped"


def test_continuing_with_the_id_of_another_send_is_counted(client_of_alice, release, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "send": "2/m"}
    sent = [uuid4(), uuid4()]
    post(client_of_alice, "/chats/", text="Hello", client_id=sent[0])
    post(client_of_alice, "/chats/", text="Hello", client_id=sent[1])
    answer = Message.objects.filter(role="assistant")[0]
    answer.generation.cancel()
    again = post(client_of_alice, f"/messages/{answer.pk}/continuation/", client_id=sent[0])
    assert again.status_code == 429


def test_guests_of_one_address_share_a_limit(release, settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "send_address": "2/m"}
    statuses = [
        Client().post("/chats/", {"text": "Hi", "client_id": uuid4()}, headers=JSON).status_code
        for _ in range(3)
    ]
    assert statuses == [200, 200, 429]


def test_a_full_queue_refuses_a_send_and_says_when_to_come_back(
    client_of_alice, release, settings, caplog
):
    settings.MAX_QUEUED = 1
    first = {"text": "One", "client_id": str(uuid4())}
    assert client_of_alice.post("/chats/", first).status_code == 303
    answer = post(client_of_alice, "/chats/", text="Two", client_id=str(uuid4()))
    assert (answer.status_code, answer["Retry-After"]) == (503, "30")
    assert answer.json()["error"]["code"] == "too_busy"
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # nothing has failed
    again = client_of_alice.post("/chats/", first)  # the repeat of one that was taken
    assert again.status_code == 303
    page = client_of_alice.post("/chats/", {"text": "Two", "client_id": str(uuid4())})
    assert page.status_code == 503
    assert "Two" in page.content.decode()
