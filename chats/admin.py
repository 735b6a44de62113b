"""Chats for staff: whose, how many, how long; the words only where a setting allows."""

from typing import Any

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.admin import RecordAdmin
from chats.models import Chat, Message
from chats.pending import PendingMessage
from inference.admin import link


@admin.register(Chat)
class ChatAdmin(RecordAdmin):
    content = ("title", "opening")
    list_display = ("active_at", "title", "person", "message_count", "deleted_at")
    list_filter = ("title_is_automatic", "active_at", ("deleted_at", admin.EmptyFieldListFilter))
    list_select_related = ("user",)
    search_fields = ("=id", "=user__username", "title")
    date_hierarchy = "active_at"
    ordering = ("-active_at", "-id")
    readonly_fields = ("messages_page",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        chats: QuerySet[Any] = super().get_queryset(request).annotate(count=Count("messages"))
        return chats

    @admin.display(description="user", ordering="user__username")
    def person(self, chat: Chat) -> SafeString:
        return link(chat.user)

    @admin.display(description="messages", ordering="count")
    def message_count(self, chat: Any) -> int:
        return int(chat.count)

    @admin.display(description="messages")
    def messages_page(self, chat: Chat) -> SafeString:
        page = reverse("admin:chats_message_changelist")
        return format_html('<a href="{}?chat={}">Messages</a>', page, chat.pk)


@admin.register(Message)
class MessageAdmin(RecordAdmin):
    content = ("text",)
    list_display = ("created_at", "role", "person", "depth", "chat_page", "run")
    list_filter = ("role", "created_at")
    list_select_related = ("user", "generation")
    search_fields = ("=id", "=chat__id", "=user__username", "=client_id", "text")
    ordering = ("-id",)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "chat" or super().lookup_allowed(lookup, value, request)

    @admin.display(description="user", ordering="user__username")
    def person(self, message: Message) -> SafeString:
        return link(message.user)

    @admin.display(description="chat")
    def chat_page(self, message: Message) -> SafeString:
        page = reverse("admin:chats_chat_change", args=[message.chat_id])
        return format_html('<a href="{}">{}</a>', page, message.chat_id)

    @admin.display(description="generation")
    def run(self, message: Message) -> SafeString | str:
        return link(message.generation) if message.generation else "-"


@admin.register(PendingMessage)
class PendingMessageAdmin(RecordAdmin):
    content = ("text",)
    list_display = ("created_at", "chat_id", "client_id")
    search_fields = ("=id", "=chat__id", "=client_id", "text")
    ordering = ("-created_at",)
