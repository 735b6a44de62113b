"""Deleted chats go for good after DELETED_CHATS_DAYS, and with them what their runs still hold."""

from datetime import timedelta

from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from accounts.models import Count
from chats.models import Chat
from chats.titles import BRANCH
from inference.models import DailyUsage, Generation

AT_ONCE = 100


def keep_house() -> None:
    """Once an hour: what was deleted long ago, what has expired, and sums of what was used."""
    purge_deleted()
    SessionStore.clear_expired()
    Count.objects.filter(expires_at__lt=Now()).delete()
    DailyUsage.objects.roll_up()


def purge_deleted() -> int:
    """Purge the chats that were deleted long enough ago; returns how many (100 at most)."""
    age = timedelta(days=settings.DELETED_CHATS_DAYS)
    ended = Chat.objects.exclude(messages__generation__status__in=Generation.ACTIVE)
    old = list(ended.filter(deleted_at__lt=timezone.now() - age)[:AT_ONCE])
    for chat in old:
        with transaction.atomic():
            _purge(chat)
    return len(old)


def _purge(chat: Chat) -> None:
    branches = [str(pk) for pk in chat.messages.values_list("pk", flat=True)]
    of_chat = Q(message__chat=chat) | Q(branch__in=[*branches, f"{BRANCH}{chat.pk}"])
    runs = Generation.objects.filter(of_chat, user=chat.user_id)
    Generation.objects.filter(pk__in=list(runs.values_list("pk", flat=True))).forget()
    chat.delete()
