"""Chats and messages: the tree, its versions, and one message for every client_id."""
# Rows made a line above are known to have what the schema leaves optional.
# mypy: disable-error-code="union-attr, arg-type"

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import connection

from chats import transcript
from chats.models import Chat, Message
from chats.pending import PendingMessage
from chats.prompt import window
from chats.refusals import Busy, CannotContinue, ClientIdReused, NoModel
from inference.models import Generation
from tests.chats.conftest import talk

pytestmark = pytest.mark.django_db


def texts(chat):
    return [row.text for row in transcript.rows(Chat.objects.get(pk=chat.pk))]


def test_a_chat_starts_with_a_question_and_a_queued_answer(alice, release):
    answer = Chat.start(alice, "Hello", uuid4())
    assert answer.parent.text == "Hello"
    assert answer.generation.status == "queued"
    assert answer.generation.prompt.messages == [{"role": "user", "content": "Hello"}]
    assert Chat.objects.get().leaf == answer


def test_a_chat_is_called_by_the_first_words_of_its_question_until_it_has_a_title(alice, release):
    chat = Chat.start(alice, f"Why is\u202e the\n sky blue? {'And so on. ' * 20}", uuid4()).chat
    assert chat.name == "Why is the sky blue? And so on. And so on. And so on. And…"
    chat.name_automatically("Blue Sky")
    assert chat.name == "Blue Sky"
    assert Chat(user=alice).name == "New chat"


def test_without_a_model_nothing_is_written(alice):
    with pytest.raises(NoModel):
        Chat.start(alice, "Hello", uuid4())
    assert not Chat.objects.exists()


def test_only_the_owner_sees_a_chat_and_nobody_a_deleted_one(alice, bob, answered):
    assert Chat.objects.visible_to(alice).count() == 1
    assert not Chat.objects.visible_to(bob).exists()
    assert not Chat.objects.visible_to(AnonymousUser()).exists()
    answered.chat.discard()
    assert not Chat.objects.visible_to(alice).exists()
    answered.chat.restore()
    assert Chat.objects.visible_to(alice).exists()


def test_the_next_question_is_asked_with_what_was_said(answered):
    answer = answered.chat.ask("And coffee?", uuid4())
    assert [turn["content"] for turn in answer.generation.prompt.messages] == [
        "What is tea?", "Leaves in water.", "And coffee?",
    ]  # fmt: skip
    assert answer.depth == 3


def test_the_same_send_again_returns_the_same_answer(answered):
    client_id = uuid4()
    first = answered.chat.ask("And coffee?", client_id)
    assert answered.chat.ask("And coffee?", client_id) == first
    assert Message.objects.count() == 4


def test_the_same_start_again_returns_the_same_chat(alice, release):
    client_id = uuid4()
    assert Chat.start(alice, "Hi", client_id) == Chat.start(alice, "Hi", client_id)
    assert Chat.objects.count() == 1


def test_the_same_client_id_with_another_text_is_refused(answered):
    client_id = uuid4()
    answered.chat.ask("And coffee?", client_id)
    with pytest.raises(ClientIdReused):
        answered.chat.ask("And cocoa?", client_id)
    with pytest.raises(ClientIdReused):
        Chat.start(answered.chat.user, "And coffee?", client_id)


def test_two_people_may_use_the_same_client_id(alice, bob, release):
    client_id = uuid4()
    assert Chat.start(alice, "Hi", client_id).chat != Chat.start(bob, "Hi", client_id).chat


def test_a_message_waits_while_the_answer_is_written(alice, release):
    answer = Chat.start(alice, "Hi", uuid4())
    client_id = uuid4()
    held = answer.chat.ask("And then?", client_id)
    assert isinstance(held, PendingMessage)
    assert answer.chat.ask("And then?", client_id) == held
    with pytest.raises(ClientIdReused):
        answer.chat.ask("Something else", client_id)


def test_a_waiting_message_is_asked_when_the_answer_ends(alice, release, pen):
    answer = Chat.start(alice, "Hi", uuid4())
    client_id = uuid4()
    answer.chat.ask("And then?", client_id)
    pen(answer).write("Hello.").end()
    chat = Chat.objects.get()
    assert not chat.pending.exists()
    assert texts(chat) == ["Hi", "Hello.", "And then?", ""]
    assert chat.ask("And then?", client_id) == chat.leaf


def test_only_so_many_messages_may_wait(alice, release):
    chat = Chat.start(alice, "Hi", uuid4()).chat
    for number in range(Chat.MAX_PENDING):
        chat.ask(f"{number}", uuid4())
    with pytest.raises(Busy):
        chat.ask("One too many", uuid4())


def test_ask_now_stops_the_answer_and_comes_first(alice, release):
    chat = Chat.start(alice, "Hi", uuid4()).chat
    chat.ask("second", uuid4())
    urgent = chat.ask("urgent", uuid4())
    urgent.ask_now()
    assert texts(chat) == ["Hi", "", "urgent", ""]
    assert [item.text for item in chat.pending.all()] == ["second"]


def test_an_edit_is_a_sibling_and_the_old_branch_can_be_shown_again(answered):
    question = answered.parent
    answer = question.edit("What is coffee?", uuid4())
    assert answer.parent.parent_id == question.parent_id
    assert texts(answered.chat) == ["What is coffee?", ""]
    answered.chat.show(question)
    assert texts(answered.chat) == ["What is tea?", "Leaves in water."]


def test_the_same_edit_again_is_one_sibling(answered):
    client_id = uuid4()
    first = answered.parent.edit("What is coffee?", client_id)
    assert answered.parent.edit("What is coffee?", client_id) == first
    with pytest.raises(ClientIdReused):
        answered.parent.edit("What is cocoa?", client_id)


def test_answering_again_makes_a_version(answered):
    again = answered.regenerate(uuid4())
    row = transcript.rows(Chat.objects.get())[-1]
    assert (row.message, row.version_number, row.versions) == (again, 2, [answered.pk, again.pk])
    assert row.previous_version == answered.pk
    assert row.next_version is None


def test_answering_again_twice_at_once_is_one_version(answered):
    client_id = uuid4()
    first = answered.regenerate(client_id)
    assert answered.regenerate(client_id) == first
    assert answered.regenerate(uuid4()) == first
    assert Message.objects.count() == 3


def test_continuing_gives_the_same_message_a_new_run(alice, release, pen):
    answer = Chat.start(alice, "Count", uuid4())
    first = pen(answer).write("1 2 3").end("stopped", "")
    client_id = uuid4()
    answer.lengthen(client_id)
    run = answer.generation
    assert run != first
    assert run.log.text() == "1 2 3"
    assert run.prompt.parameters == first.prompt.parameters
    pen(answer).write(" 4 5").end()
    assert texts(answer.chat) == ["Count", "1 2 3 4 5"]
    assert answer.lengthen(client_id).generation == run


def test_a_finished_answer_cannot_be_continued(answered):
    with pytest.raises(CannotContinue):
        answered.lengthen(uuid4())


def test_continuing_beside_a_running_version_is_refused(alice, release, pen):
    answer = Chat.start(alice, "Count", uuid4())
    pen(answer).write("1").end("stopped", "")
    answer.regenerate(uuid4())
    with pytest.raises(Busy):
        Message.objects.get(pk=answer.pk).lengthen(uuid4())


def test_a_branch_has_one_active_run_and_branches_run_side_by_side(alice, release):
    first = Chat.start(alice, "One", uuid4())
    first.parent.edit("Two", uuid4())
    runs = Generation.objects.active()
    assert runs.count() == 2
    assert len({run.branch for run in runs}) == 2


def test_every_change_raises_the_version(answered):
    chat = answered.chat
    for change in (
        lambda: chat.rename("Tea"),
        lambda: chat.ask("More", uuid4()),
        lambda: chat.show(answered),
        chat.discard,
        chat.restore,
    ):
        before = Chat.objects.get(pk=chat.pk).version
        change()
        assert Chat.objects.get(pk=chat.pk).version > before


def test_the_prompt_holds_the_newest_messages_within_a_budget(alice, release):
    chat = talk(alice, 401, characters=1000)
    question = chat.leaf
    seen = window(question, release)
    assert len(seen.messages) <= 25
    assert seen.messages[-1]["content"] == question.text
    assert seen.messages[0]["role"] == "user"
    assert seen.left_out_before + len(seen.messages) == 401


def test_what_a_model_file_says_of_its_context_makes_no_prompt_longer_than_is_seen(alice, release):
    question = talk(alice, 101, characters=1000).leaf
    before = len(window(question, release).messages)
    release.context_tokens = 1 << 31
    assert len(window(question, release).messages) == before


def test_the_prompt_holds_at_most_200_messages(alice, release):
    seen = window(talk(alice, 301).leaf, release)
    assert len(seen.messages) in (199, 200)
    assert seen.left_out_before == 301 - len(seen.messages)


def test_a_question_longer_than_the_budget_is_still_asked(alice, release):
    assert len(window(talk(alice, 3, characters=30_000).leaf, release).messages) == 1


def test_empty_answers_are_not_part_of_the_prompt(alice, release, pen):
    answer = Chat.start(alice, "One", uuid4())
    pen(answer).end("failed", "")
    following = answer.chat.ask("Two", uuid4())
    assert [turn["content"] for turn in following.generation.prompt.messages] == ["One", "Two"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("where", ["start", "ask", "pending", "versions"])
def test_twenty_equal_sends_at_once_make_one_message(alice, release, pen, where):
    client_id, answer = uuid4(), None
    if where != "start":
        answer = Chat.start(alice, "Hi", uuid4())
    if where in {"ask", "versions"}:
        pen(answer).write("Hello").end()

    def send(_):
        try:
            if where == "start":
                return Chat.start(alice, "Same", client_id).pk
            if where == "versions":
                return Message.objects.get(pk=answer.pk).regenerate(client_id).pk
            return Chat.objects.get(pk=answer.chat_id).ask("Same", client_id).pk
        finally:
            connection.close()

    before = Message.objects.count()
    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(send, range(20)))
    assert len(ids) == 1
    new = {"start": 2, "ask": 2, "pending": 0, "versions": 1}[where]
    assert Message.objects.count() == before + new
    runs = Generation.objects.filter(purpose="chat")
    assert runs.active().count() == 1
