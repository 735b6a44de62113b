"""What follows from the end of a run: the text, the next message, the title."""

from unittest.mock import Mock
from uuid import uuid4

import pytest
from django.db import OperationalError

from chats import answers
from chats.models import Chat, Message
from chats.titles import is_about
from chats.wording import shortened, tidy
from inference.models import Generation

pytestmark = pytest.mark.django_db


def title_run():
    return Generation.objects.get(purpose="title")


def finish_title(run, text, kind="done"):
    (run,) = Generation.objects.filter(pk=run.pk).claim(run.release, uuid4(), 1)
    run.log.adopt(run.fence)
    run.log.finish(run.fence, 1, kind, text=text)
    return Chat.objects.get()


def test_the_text_of_the_answer_is_that_of_its_run(answered):
    assert answered.text == answered.generation.text == "Leaves in water."


def test_the_first_answer_asks_for_a_title_behind_everything_else(answered):
    run = title_run()
    assert run.priority == answered.generation.priority + 50
    assert run.prompt.parameters["max_tokens"] == 24
    assert run.branch == f"title:{answered.chat_id}"


def test_a_title_is_stored_and_keeps_the_place_in_the_list(answered):
    before = Chat.objects.get()
    chat = finish_title(title_run(), '**"About Tea."**\nMore words')
    assert chat.title == "About Tea"
    assert chat.title_is_automatic
    assert chat.active_at == before.active_at
    assert chat.version > before.version


def test_a_title_never_replaces_one_that_a_person_gave(answered):
    answered.chat.rename("Mine")
    assert finish_title(title_run(), "About Tea").title == "Mine"


@pytest.mark.parametrize(
    "text", ["", "...", "Sure! Here is a title", "word " * 20, "Growing Basil"]
)
def test_a_silly_title_falls_back_to_the_question(answered, text):
    assert finish_title(title_run(), text).title == "What is tea?"


def test_a_failed_title_falls_back_to_the_question(answered):
    assert finish_title(title_run(), "", "failed").title == "What is tea?"


def test_a_renamed_chat_asks_for_no_title(alice, release, pen):
    answer = Chat.start(alice, "Hi", uuid4())
    answer.chat.rename("Mine")
    pen(answer).write("Hello").end()
    assert not Generation.objects.filter(purpose="title").exists()


def test_a_second_answer_asks_for_no_second_title(answered, pen):
    finish_title(title_run(), "Tea")
    pen(answered.chat.ask("More", uuid4())).write("More.").end()
    assert Generation.objects.filter(purpose="title").count() == 1


def test_while_a_title_is_on_its_way_another_answer_asks_for_none_and_is_kept(
    answered, pen, caplog
):
    answer = answered.chat.ask("More", uuid4())
    pen(answer).write("More.").end()
    assert Message.objects.get(pk=answer.pk).text == "More."
    assert Generation.objects.filter(purpose="title").count() == 1
    assert "follow-up" not in caplog.text


def test_a_deleted_chat_keeps_its_answer_and_asks_nothing_more(alice, release, pen):
    answer = Chat.start(alice, "Hi", uuid4())
    answer.chat.ask("More", uuid4())
    answer.chat.discard()
    pen(answer).write("Hello").end()
    assert Message.objects.get(pk=answer.pk).text == "Hello"
    assert not Generation.objects.active().exists()


def test_a_failing_follow_up_does_not_lose_the_answer(alice, release, pen, monkeypatch, caplog):
    answer = Chat.start(alice, "Hi", uuid4())
    monkeypatch.setattr(answers, "ask_for_title", lambda *_: 1 / 0)
    pen(answer).write("Hello").end()
    assert Message.objects.get(pk=answer.pk).text == "Hello"
    assert "follow-up" in caplog.text


def test_an_end_whose_follow_up_met_a_lock_is_tried_again_whole(alice, release, pen, monkeypatch):
    answer = Chat.start(alice, "Hi", uuid4())
    answer.chat.ask("More", uuid4())
    writing = pen(answer).write("Hello")
    with monkeypatch.context() as once:
        once.setattr(Chat, "ask_next", Mock(side_effect=OperationalError("lock timeout")))
        with pytest.raises(OperationalError):
            writing.end()
    assert Message.objects.get(pk=answer.pk).is_answering
    writing.end()
    assert Message.objects.get(pk=answer.pk).text == "Hello"
    assert not Chat.objects.get().pending.exists()
    assert Message.objects.filter(text="More").exists()


def test_a_waiting_message_stays_when_there_is_no_model_any_more(alice, release, pen):
    answer = Chat.start(alice, "Hi", uuid4())
    answer.chat.ask("More", uuid4())
    type(release).objects.update(state="retired")
    pen(answer).write("Hello").end()
    assert Chat.objects.get().pending.count() == 1


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("Title: Growing Basil", "Growing Basil"),
        ("# Growing Basil.", "Growing Basil"),
        ("\n\n“Growing Basil”", "Growing Basil"),
        ("- Growing Basil", "Growing Basil"),
        ("python", "Python"),
        ("C++ or Rust?", "C++ or Rust?"),
        ("The title is Basil", ""),
        ("茶について", "茶について"),
        ("a\u202eb\x07c", "Abc"),
    ],
)
def test_titles_are_tidied(written, title):
    assert tidy(written) == title


def test_titles_are_at_most_sixty_characters():
    assert len(tidy("supercalifragilistic " * 6)) <= 60
    assert len(shortened("x" * 500)) <= 60
    assert shortened("\u200b") == "New chat"


@pytest.mark.parametrize(
    ("title", "question", "related"),
    [
        ("Finding Words", "Find the longest word", True),
        ("The Basil Plant", "What is the time?", False),
        ("Tea", "what is tea?", True),
        ("Fruits for Basil", "Name three fruits", False),
        ("Basil in Winter", "Does basil survive winter?", True),
        ("绿茶简介", "什么是绿茶？", True),
        ("", "Hi", False),
    ],
)
def test_a_title_must_be_about_the_question(title, question, related):
    assert is_about(title, question) is related
