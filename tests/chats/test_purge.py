"""What a person deleted is gone for good after a while; the bill stays."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from chats.models import Chat, Message
from chats.purge import purge_deleted
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
