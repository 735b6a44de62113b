"""How an answer was made, for the one who asked for it."""

import pytest
from django.test import Client
from django.urls import reverse

from chats.models import Message
from inference.models import Generation, Prompt

pytestmark = pytest.mark.django_db


@pytest.fixture
def client(alice, signed_in):
    return signed_in(alice)


def details(client: Client, answer: Message, **query: int) -> str:
    return client.get(reverse("details", args=[answer.pk]), query).content.decode()


def test_an_answer_tells_its_release_its_seed_its_prompt_and_how_to_replay_it(client, answered):
    run = answered.generation
    Generation.objects.update(prompt_tokens=45, cached_tokens=12, completion_tokens=212)
    Prompt.objects.update(sha256="0123456789abcdef" * 4)
    page = details(client, answered)
    for fact in (
        "Test model, release 1",
        "45, 12 of them known already",
        "212",
        f"{run.prompt.parameters['seed']}",
        ">0123456789ab<",
        f"./manage.py replay {run.pk}",
        f'href="{reverse("chat", args=[answered.chat_id])}#message-{answered.pk}"',
    ):
        assert fact in page
    assert "max_tokens" not in page
    assert "Left out" not in page


def test_what_is_not_usual_is_told_too(client, answered):
    seed = answered.generation.prompt.parameters["seed"]
    parameters = {"temperature": 0.2, "top_k": 40, "max_tokens": 9, "seed": seed}
    Prompt.objects.update(parameters=parameters, left_out=2, left_out_before=3, cut_characters=1)
    page = " ".join(details(client, answered).split())
    assert "<dt>temperature</dt> <dd> 0.2 </dd>" in page
    assert "<dt>max_tokens</dt> <dd> 9 </dd>" in page
    assert "top_k" not in page
    assert "5 earlier messages" in page
    assert "1 character of the question" in page


def test_a_dialog_gets_no_more_than_the_list(client, answered):
    part = details(client, answered, fragment=1)
    assert "<dl" in part
    assert "<html" not in part


def test_an_answer_whose_run_was_forgotten_tells_what_is_left(client, answered):
    Generation.objects.all().forget()
    page = details(client, answered)
    assert "Test model, release 1" in page
    assert "manage.py replay" not in page
    Message.objects.update(generation=None)
    assert "Nothing is known of how this answer was made." in details(client, answered)


def test_a_question_has_no_details_of_its_own(client, answered):
    assert client.get(reverse("details", args=[answered.parent_id])).status_code == 404
