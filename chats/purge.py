"""Deleted chats go for good after DELETED_CHATS_DAYS, and with them what their runs still hold.

So do guests whom nobody can be any more, with all of theirs.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.db import DatabaseError, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from accounts.models import Count, User
from chats.models import Chat, Message
from chats.pending import PendingMessage
from chats.titles import BRANCH
from inference.database import log_failure
from inference.models import DailyUsage, Generation

log = logging.getLogger(__name__)
AT_ONCE = 100
GUESTS_AT_ONCE = 300  # in an hour: some seconds of work
GRACE = timedelta(days=30)  # after the session of a guest who was never seen again
T = TypeVar("T")


def keep_house() -> None:
    """Once an hour: what was deleted long ago, what has expired, and sums of what was used."""
    purge_deleted()
    purge_guests()
    SessionStore.clear_expired()
    Count.objects.filter(expires_at__lt=Now()).delete()
    DailyUsage.objects.roll_up()


def purge_deleted() -> int:
    """Purge the chats that were deleted long enough ago; returns how many (100 at most)."""
    age = timedelta(days=settings.DELETED_CHATS_DAYS)
    ended = Chat.objects.exclude(messages__generation__status__in=Generation.ACTIVE)
    return _each(_purge, ended.filter(deleted_at__lt=timezone.now() - age)[:AT_ONCE])


def purge_guests() -> int:
    """Purge the guests whose sessions ended long ago; returns how many."""
    since = timezone.now() - timedelta(seconds=settings.SESSION_COOKIE_AGE) - GRACE
    last_seen = Coalesce("last_login", "date_joined")
    gone = User.objects.annotate(last_seen=last_seen).filter(is_guest=True, last_seen__lt=since)
    # The last ones have rows in chats that are a member's now (accounts.guests.hand_over).
    keep: list[QuerySet[Any]] = [
        Chat.objects.filter(active_at__gte=since),
        Generation.objects.filter(status__in=Generation.ACTIVE),
        Message.objects.exclude(chat__user=F("user")).filter(user__isnull=False),
        PendingMessage.objects.exclude(chat__user=F("user")),
        Generation.objects.filter(message__isnull=False).exclude(message__chat__user=F("user")),
    ]
    for lasting in keep:
        gone = gone.exclude(pk__in=lasting.values("user"))
    return _each(_purge_guest, gone[:GUESTS_AT_ONCE])


def _each(purge: Callable[[T], None], found: Iterable[T]) -> int:
    """How many could be; one that is locked now is left for the next time."""
    done = 0
    for one in list(found):
        try:
            with transaction.atomic():
                purge(one)
            done += 1
        except DatabaseError:
            log_failure(log, f"{one} could not be purged; it is tried again in an hour.")
    return done


def _purge_guest(guest: User) -> None:
    for chat in guest.chats.all():
        _purge(chat)
    guest.delete()


def _purge(chat: Chat) -> None:
    branches = [str(pk) for pk in chat.messages.values_list("pk", flat=True)]
    of_chat = Q(message__chat=chat) | Q(branch__in=[*branches, f"{BRANCH}{chat.pk}"])
    runs = Generation.objects.filter(of_chat, user=chat.user_id)
    Generation.objects.filter(pk__in=list(runs.values_list("pk", flat=True))).forget()
    chat.delete()
