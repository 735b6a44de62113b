"""What a person deleted is gone for good after a while; the bill stays."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import OperationalError
from django.utils import timezone

from accounts.models import User
from chats.models import Chat, Message
from chats.purge import purge_deleted, purge_guests
from inference.models import Chunk, Generation, Prompt

pytestmark = pytest.mark.django_db


def delete(chat: Chat, days_ago: int) -> None:
    Chat.objects.filter(pk=chat.pk).update(deleted_at=timezone.now() - timedelta(days=days_ago))


def test_a_chat_deleted_long_ago_leaves_no_word_behind(answered):
    first = answered.generation
    again = answered.regenerate(uuid4()).generation
    again.cancel()
    delete(answered.chat, 31)
    assert purge_deleted() == 1
    assert not Chat.objects.exists()
    assert not Message.objects.exists()
    assert not Prompt.objects.filter(generation__in=[first, again]).exists()
    assert not Chunk.objects.exists()
    for run in Generation.objects.all():
        assert run.text == ""
        assert bytes(run.token_ids) == b""
    assert Generation.objects.get(pk=first.pk).status == "done"  # what it took stays


def test_a_chat_that_is_still_being_answered_waits_for_the_end(answered):
    run = answered.regenerate(uuid4()).generation
    delete(answered.chat, 31)
    assert purge_deleted() == 0
    run.cancel()
    assert purge_deleted() == 1


def test_a_chat_deleted_lately_can_still_be_brought_back(answered):
    delete(answered.chat, 29)
    assert purge_deleted() == 0
    answered.chat.restore()
    answered.refresh_from_db()
    assert answered.text


def test_what_is_not_deleted_is_never_purged(answered, settings):
    settings.DELETED_CHATS_DAYS = 0
    assert purge_deleted() == 0
    assert Generation.objects.get(pk=answered.generation_id).text


def seen_last(guest: User, days_ago: int) -> None:
    then = timezone.now() - timedelta(days=days_ago)
    User.objects.filter(pk=guest.pk).update(date_joined=then)
    guest.chats.update(active_at=then)


def test_a_guest_whom_nobody_can_be_any_more_goes_with_every_word(release, pen):
    guest, other = User.objects.create_guest(), User.objects.create_guest()
    for person in (guest, other):
        pen(Chat.start(person, "Who am I?", uuid4())).write("Nobody.").end()
    Generation.objects.filter(purpose="title").delete()
    seen_last(guest, 121)
    seen_last(other, 119)
    assert purge_guests() == 1
    assert list(User.objects.filter(is_guest=True)) == [other]
    assert {message.chat.user for message in Message.objects.all()} == {other}
    assert {run.user for run in Generation.objects.all()} == {other}


def test_a_guest_stays_while_their_session_does_though_what_they_did_last_is_gone(release, client):
    client.post("/chats/", {"text": "Lately", "client_id": uuid4()})
    guest = User.objects.get(is_guest=True)
    run = Generation.objects.get()
    run.cancel()
    Chat.objects.all().delete()
    Chat.objects.create(user=guest)
    seen_last(guest, 1000)
    assert purge_guests() == 0
    User.objects.filter(pk=guest.pk).update(last_login=timezone.now() - timedelta(days=121))
    assert purge_guests() == 1


def test_a_guest_with_rows_in_a_chat_that_is_a_member_s_now_stays(alice, answered):
    """Such as hand_over leaves with the guest."""
    guest = User.objects.create_guest()
    seen_last(guest, 1000)
    for rows in (Message.objects.filter(role="user"), Generation.objects.filter(purpose="chat")):
        rows.update(user=guest)
        assert purge_guests() == 0
        rows.update(user=alice)
    assert purge_guests() == 1
    assert Message.objects.count() == 2


def test_a_guest_who_was_here_lately_or_has_an_account_now_stays(alice, answered):
    seen_last(alice, 1000)
    guest = User.objects.create_guest()
    Chat.objects.create(user=guest)
    User.objects.filter(pk=guest.pk).update(date_joined=timezone.now() - timedelta(days=1000))
    assert purge_guests() == 0


def test_a_chat_that_cannot_be_purged_now_holds_up_no_other(answered, alice, monkeypatch):
    other = Chat.objects.create(user=alice)
    delete(answered.chat, 31)
    delete(other, 31)
    purge = Chat.delete

    def locked(chat: Chat) -> None:
        if chat.pk == answered.chat_id:
            raise OperationalError("lock timeout")
        purge(chat)

    monkeypatch.setattr(Chat, "delete", locked)
    assert purge_deleted() == 1
    assert list(Chat.objects.all()) == [answered.chat]
