"""What a page shows, and that a long chat costs what a short one does."""
# Rows made a line above are known to have what the schema leaves optional.
# mypy: disable-error-code="union-attr, arg-type"

from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from chats import sidebar, transcript
from chats.models import Chat, Message
from inference.models import Prompt, Worker
from tests.chats.conftest import talk

pytestmark = pytest.mark.django_db


def last_row(chat):
    return transcript.rows(Chat.objects.get(pk=chat.pk))[-1]


def cost_of(work, *args):
    with CaptureQueriesContext(connection) as queries:
        work(*args)
    return len(queries)


def test_a_queued_answer_shows_its_position(alice, worker):
    Chat.start(alice, "One", uuid4())
    row = last_row(Chat.start(alice, "Two", uuid4()).chat)
    assert (row.state, row.position, row.text, row.seq) == ("queued", 2, "", 0)


def test_without_a_ready_worker_the_model_is_loading(alice, worker):
    Worker.objects.update(state="loading", percent_loaded=40)
    row = last_row(Chat.start(alice, "One", uuid4()).chat)
    assert (row.state, row.percent) == ("loading", 40)


def test_a_running_answer_shows_what_its_log_holds(alice, release, pen):
    answer = Chat.start(alice, "One", uuid4())
    pen(answer).write("Hel", "lo **you**")
    row = last_row(answer.chat)
    assert (row.state, row.text, row.seq, row.epoch) == ("running", "Hello **you**", 2, 0)
    assert not row.can_continue


def test_a_finished_answer_is_markdown(alice, release, pen):
    answer = Chat.start(alice, "One", uuid4())
    pen(answer).write("Hello **you** <script>").end("stopped", "")
    row = last_row(answer.chat)
    assert "<strong>you</strong> &lt;script&gt;" in row.html
    assert row.state == "stopped"
    assert row.can_continue


def test_left_out_messages_are_told(alice, release):
    answer = talk(alice, 300).ask("More", uuid4())
    answer.generation.prompt.left_out = 7
    answer.generation.prompt.save()
    row = last_row(answer.chat)
    assert (row.left_out, row.is_summarised) == (300 + 1 - 199 + 7, False)


@pytest.mark.parametrize(("summary", "said"), [("", "were left out"), ("S", "were summarised")])
def test_the_page_says_whether_what_did_not_fit_was_summarised(
    alice, release, signed_in, summary, said
):
    answer = talk(alice, 3).ask("More", uuid4())
    Prompt.objects.filter(pk=answer.generation_id).update(left_out=2, summary=summary)
    page = signed_in(alice).get(f"/chats/{answer.chat_id}/").content.decode()
    assert f"2 earlier messages did not fit in the model’s memory and {said}" in page


def test_a_window_is_followed_by_older_ones_without_a_gap(alice):
    chat = talk(alice, 150)
    depths: list[int] = []
    before = None
    while True:
        rows = transcript.rows(chat, before)
        depths = [row.message.depth for row in rows] + depths
        older = transcript.older_before(rows)
        if older is None:
            break
        before = Message.objects.get(pk=older)
    assert depths == list(range(150))


def test_an_empty_chat_has_no_rows(alice):
    assert transcript.rows(Chat.objects.create(user=alice)) == []


def test_ten_thousand_messages_cost_what_ten_do(alice, signed_in):
    small, large = talk(alice, 10), talk(alice, 10_000)
    client = signed_in(alice)
    costs = {cost_of(client.get, f"/chats/{chat.pk}/") for chat in (small, large)}
    assert len(costs) == 1
    assert costs.pop() <= 12
    assert len(transcript.rows(large)) == transcript.WINDOW


def test_asking_in_a_long_chat_costs_what_it_does_in_a_short_one(alice, release):
    small, large = talk(alice, 250), talk(alice, 10_000)
    costs = {cost_of(chat.ask, "More", uuid4()) for chat in (small, large)}
    assert len(costs) == 1


def test_a_thousand_chats_cost_what_one_does(alice, bob, signed_in):
    talk(bob, 2)
    for _ in range(1000):
        Chat.objects.create(user=alice, title="One of many")
    costs = {cost_of(signed_in(person).get, "/chats/?fragment=1") for person in (alice, bob)}
    assert len(costs) == 1


def test_the_list_is_paged_without_gaps_or_repeats(alice):
    made = {Chat.objects.create(user=alice).pk for _ in range(25)}
    Chat.objects.update(active_at=Chat.objects.first().active_at)  # ties are kept apart by id
    seen: list = []
    cursor: str | None = ""
    while cursor is not None:
        page = sidebar.page(alice, cursor, limit=10)
        seen += [chat.pk for _, chats in page.groups for chat in chats]
        cursor = page.before
    assert seen == sorted(made, reverse=True)


def test_the_list_says_which_chats_are_being_answered(alice, answered):
    Chat.start(alice, "One", uuid4())
    listed: list = Chat.objects.sidebar(alice)
    assert [chat.is_running for chat in listed] == [True, False]
