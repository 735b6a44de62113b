"""Messages sent while the chat was still answering."""

from datetime import timedelta
from typing import ClassVar

from django.conf import settings
from django.db import models, transaction
from django.utils import timezone

from accounts.ids import uuid7
from chats.querysets import PendingMessageQuerySet


class PendingMessage(models.Model):
    """A message sent while the chat was still answering; it is asked when the answer ends."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    chat = models.ForeignKey("chats.Chat", on_delete=models.CASCADE, related_name="pending")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    text = models.TextField()
    client_id = models.UUIDField()
    created_at = models.DateTimeField(default=timezone.now)

    objects = PendingMessageQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "client_id"], name="one_pending_per_send"),
        ]

    def __str__(self) -> str:
        return f"pending {self.id}"

    # Each locks the chat first, as an end does that asks what waits there.
    def reword(self, text: str) -> None:
        with transaction.atomic():
            self.chat.lock()
            PendingMessage.objects.filter(pk=self.pk).update(text=text)
            self.chat.touch()

    def withdraw(self) -> None:
        with transaction.atomic():
            self.chat.lock()
            self.delete()
            self.chat.touch()

    def ask_now(self) -> None:
        """Put this message first and stop the answer it waits for."""
        with transaction.atomic():
            self.chat.lock()
            first = self.chat.pending.exclude(pk=self.pk).first()
            if first and first.created_at <= self.created_at:
                earlier = first.created_at - timedelta(milliseconds=1)
                PendingMessage.objects.filter(pk=self.pk).update(created_at=earlier)
        leaf = self.chat.leaf
        if leaf and leaf.generation and leaf.generation.is_active:
            leaf.generation.cancel()  # its end asks the next message
        else:
            self.chat.ask_next()
