"""Which chats and messages a person may see; each lookup by an id goes through here."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import models
from django.db.models import Q

from chats.repeats import OncePerSend
from inference.models import Generation

if TYPE_CHECKING:
    from accounts.models import User
    from chats.models import Chat, Message  # named in strings
    from chats.pending import PendingMessage  # noqa: F401


class ChatQuerySet(models.QuerySet["Chat"]):
    def visible_to(self, user: Any, *, deleted: bool = False) -> "ChatQuerySet":
        """The person's own chats; `deleted` includes those that can still be restored."""
        if not user.is_authenticated:
            return self.none()
        own = self.filter(user_id=user.pk)
        return own if deleted else own.filter(deleted_at=None)

    def sidebar(
        self, user: Any, before: tuple[datetime, UUID] | None = None, limit: int = 40
    ) -> "list[Chat]":
        """The newest chats, or those that come after the keyset `before`; no message is read."""
        chats = self.visible_to(user)
        if before:
            time, pk = before
            chats = chats.filter(active_at__lte=time).filter(Q(active_at__lt=time) | Q(pk__lt=pk))
        running = Q(leaf__generation__status__in=Generation.ACTIVE)
        listed = chats.annotate(is_running=models.ExpressionWrapper(running, models.BooleanField()))
        return list(listed.order_by("-active_at", "-id")[:limit])


class MessageQuerySet(OncePerSend, models.QuerySet["Message"]):
    def visible_to(self, user: Any) -> "MessageQuerySet":
        if not user.is_authenticated:
            return self.none()
        return self.filter(chat__user_id=user.pk, chat__deleted_at=None)

    def sent(self, user: "User | int", client_id: UUID) -> "Message | None":
        """The message this person's `client_id` made, if it has made one."""
        return self.filter(user=user, client_id=client_id).select_related("chat").first()


class PendingMessageQuerySet(OncePerSend, models.QuerySet["PendingMessage"]):
    def visible_to(self, user: Any) -> "PendingMessageQuerySet":
        if not user.is_authenticated:
            return self.none()
        return self.filter(chat__user_id=user.pk, chat__deleted_at=None)
