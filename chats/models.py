"""Conversations people see: a chat is a tree of messages with one leaf shown."""

import functools
from collections.abc import Iterable
from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.ids import uuid7
from accounts.models import User
from chats import tree
from chats.pending import PendingMessage
from chats.querysets import ChatQuerySet, MessageQuerySet
from chats.refusals import Busy, CannotContinue, ClientIdReused, NoModel
from chats.repeats import repeatable
from chats.wording import MAX_CHARACTERS, shortened
from inference import doorbell
from inference.models import Generation, Release


class Chat(models.Model):
    MAX_PENDING = 10

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="chats"
    )
    title = models.CharField(max_length=120, blank=True)
    opening = models.CharField(
        max_length=MAX_CHARACTERS,
        blank=True,
        default="",
        db_default="",  # for releases that do not know it yet
        help_text="First words of the first question: its name until it has a title",
    )
    title_is_automatic = models.BooleanField(default=True)
    leaf = models.ForeignKey(
        "Message", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    version = models.PositiveIntegerField(
        default=0, help_text="Raised by every change a second tab must see"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    active_at = models.DateTimeField(default=timezone.now, help_text="Orders the sidebar")
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = ChatQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["user", "-active_at", "-id"], name="chat_sidebar"),
        ]

    def __str__(self) -> str:
        return f"chat {self.id}"  # not its title: the admin writes this on many pages

    @property
    def name(self) -> str:
        return self.title or self.opening or "New chat"

    # --- asking ---------------------------------------------------------------------------
    @classmethod
    def start(
        cls, user: User, text: str, client_id: UUID, release: Release | None = None
    ) -> "Message":
        """A new chat with its first question; returns the answer that was queued.

        The same `client_id` again returns the same answer. `release`: what serves this person, if
        that was just asked. Raises ClientIdReused, NoModel.
        """
        try:
            return cls._start_anew(user, text, client_id, release)
        except IntegrityError:  # most likely the unique client_id: not looked for beforehand
            repeat = Message.objects.sent(user, client_id)
            if repeat is None:
                raise
        repeat.require_same(role=Message.Role.USER, text=text, parent_id=None)
        return repeat.first_answer()

    @classmethod
    def _start_anew(
        cls, user: User, text: str, client_id: UUID, release: Release | None
    ) -> "Message":
        chat = cls(user=user, version=1, opening=shortened(text))
        with transaction.atomic():
            # References to rows that follow are checked at the commit.
            answer = chat.leaf = chat._say(text, client_id, None, release)
            chat.save(force_insert=True)
            chat._ring()
        return answer

    @repeatable
    def ask(
        self, text: str, client_id: UUID, parent: "Message | None" = None
    ) -> "Message | PendingMessage":
        """Ask below `parent` (default: the leaf); returns the answer that was queued.

        While the answer above is still being written the message waits: a PendingMessage.
        The same `client_id` again returns the same row. Raises ClientIdReused, Busy, NoModel.
        """
        body = {"role": Message.Role.USER, "chat_id": self.pk, "text": text}
        if parent:
            body["parent_id"] = parent.pk
        with transaction.atomic():
            self.lock()
            known = self._known(client_id, body)
            return known or self._ask_or_hold(text, client_id, parent or self.leaf)

    def _ask_or_hold(
        self, text: str, client_id: UUID, parent: "Message | None"
    ) -> "Message | PendingMessage":
        if parent and parent.is_answering:
            return self._hold(text, client_id)
        return self._say_and_show(text, client_id, parent)

    def _known(self, client_id: UUID, body: dict[str, Any]) -> "Message | PendingMessage | None":
        sent = Message.objects.sent(self.user_id, client_id)
        if sent:
            sent.require_same(**body)
            return sent.first_answer()
        held = PendingMessage.objects.filter(user=self.user_id, client_id=client_id).first()
        if held and (held.chat_id, held.text) != (self.pk, body["text"]):
            raise ClientIdReused
        return held

    def _say_and_show(self, text: str, client_id: UUID, parent: "Message | None") -> "Message":
        answer = self._say(text, client_id, parent)
        self.touch(leaf=answer, active_at=timezone.now())
        return answer

    def _say(
        self, text: str, client_id: UUID, parent: "Message | None", release: Release | None = None
    ) -> "Message":
        """Store a question and the answer that is queued for it, which is returned."""
        question = Message(
            chat=self,
            parent=parent,
            role=Message.Role.USER,
            text=text,
            depth=parent.depth + 1 if parent else 0,
            user_id=self.user_id,
            client_id=client_id,
        )
        answer = question.prepare_answer(release=release)
        Message.objects.bulk_create([question, answer])
        return answer

    def _hold(self, text: str, client_id: UUID) -> PendingMessage:
        if self.pending.count() >= self.MAX_PENDING:
            raise Busy(f"{self.MAX_PENDING} messages are waiting here already. Let some be asked.")
        held = self.pending.create(text=text, client_id=client_id, user_id=self.user_id)
        self.touch(active_at=timezone.now())
        return held

    def ask_next(self) -> "Message | None":
        """Ask the first waiting message, if the shown branch is not being answered."""
        with transaction.atomic():
            self.lock()
            held = self.pending.first()
            if held is None or (self.leaf and self.leaf.is_answering):
                return None
            held.delete()
            if Message.objects.sent(self.user_id, held.client_id):
                return None  # asked in another chat meanwhile: one id, one message
            return self._say_and_show(held.text, held.client_id, self.leaf)

    # --- what is shown --------------------------------------------------------------------
    def show(self, message: "Message") -> None:
        """Show the branch of `message`, down to its newest end."""
        self.touch(leaf_id=tree.newest_leaf(message.pk))

    def rename(self, title: str) -> None:
        self.touch(title=title, title_is_automatic=False)

    def name_automatically(self, title: str) -> None:
        """Name the chat unless a person has; its place in the list stays."""
        if self._update(Q(title_is_automatic=True, title=""), title=title):
            self._ring()

    def discard(self) -> None:
        """Delete, with undo."""
        self.touch(deleted_at=timezone.now())

    def restore(self) -> None:
        self.touch(deleted_at=None)

    def touch(self, **changes: Any) -> None:
        """Store `changes`, raise the version and, on commit, tell the other tabs."""
        self._update(Q(), **changes)
        self._ring()

    def touch_locked(self) -> None:
        """The same for one that this transaction has locked, as it was read then."""
        self.version += 1
        self.save(update_fields=["version"])
        self._ring()

    def lock(self) -> None:
        """Wait for this chat's other writers and see what they wrote; ends with the transaction."""
        # Without joins: PostgreSQL cannot lock the nullable side of one.
        self.refresh_from_db(from_queryset=Chat.objects.select_for_update())

    def _update(self, guard: Q, **changes: Any) -> int:
        updated = Chat.objects.filter(guard, pk=self.pk).update(version=F("version") + 1, **changes)
        self.refresh_from_db()
        return updated

    def _ring(self) -> None:
        for topic in (f"chat:{self.pk}", f"user:{self.user_id}"):
            transaction.on_commit(functools.partial(doorbell.ring, topic))


class Message(models.Model):
    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    chat = models.ForeignKey(Chat, on_delete=models.CASCADE, related_name="messages")
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.CASCADE, related_name="children"
    )
    role = models.CharField(max_length=10, choices=Role)
    text = models.TextField(blank=True)
    depth = models.PositiveIntegerField(default=0)
    generation = models.OneToOneField(
        Generation, null=True, blank=True, on_delete=models.SET_NULL, related_name="message"
    )
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    client_id = models.UUIDField(null=True, blank=True)
    continuation_id = models.UUIDField(
        null=True, blank=True, help_text="The client_id that last lengthened this answer"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = MessageQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "client_id"], name="one_message_per_send"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["chat", "parent", "id"], name="message_tree"),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.id}"

    @property
    def is_answering(self) -> bool:
        return self.generation is not None and self.generation.is_active

    @property
    def is_fresh(self) -> bool:
        """An answer no worker has taken yet."""
        run = self.generation
        return run is not None and run.status == Generation.Status.QUEUED and not run.fence

    def require_same(self, **body: Any) -> None:
        """Raise ClientIdReused unless this message is what the same send would make again."""
        if any(getattr(self, name) != value for name, value in body.items()):
            raise ClientIdReused

    def first_answer(self) -> "Message":
        """The answer that was made together with this question."""
        return self.children.order_by("id").select_related("chat", "generation")[0]

    def prepare_answer(
        self, client_id: UUID | None = None, release: Release | None = None
    ) -> "Message":
        """Queue an answer to this question; returns the message that will show it, not stored."""
        from chats.prompt import window

        release = release or Release.objects.serving(self.chat.user)
        if release is None:
            raise NoModel
        seen = window(self, release)
        generation = Generation.objects.enqueue(
            user=self.chat.user,
            release=release,
            messages=seen.messages,
            left_out_before=seen.left_out_before,
            purpose=Generation.Purpose.CHAT,
            branch=str(self.pk),
        )
        return Message(
            chat=self.chat,
            parent=self,
            role=Message.Role.ASSISTANT,
            depth=self.depth + 1,
            generation=generation,
            user_id=self.user_id,
            client_id=client_id,
        )

    @repeatable
    def edit(self, text: str, client_id: UUID) -> "Message":
        """Ask anew beside this question; returns the answer. Raises ClientIdReused, NoModel."""
        body = {"role": self.Role.USER, "chat_id": self.chat_id, "parent_id": self.parent_id}
        with transaction.atomic():
            self.chat.lock()
            repeat = Message.objects.sent(self.user_id, client_id)
            if repeat is None:
                return self.chat._say_and_show(text, client_id, self.parent)
        repeat.require_same(text=text, **body)
        return repeat.first_answer()

    @repeatable
    def regenerate(self, client_id: UUID) -> "Message":
        """Another answer to the same question; the running one, if there is one."""
        with transaction.atomic():
            self.chat.lock()
            repeat = Message.objects.sent(self.user_id, client_id)
            if repeat:
                repeat.require_same(role=self.Role.ASSISTANT, parent_id=self.parent_id)
                return repeat
            running = self._running_version()
            if running or self.parent is None:
                return running or self
            answer = self.parent.prepare_answer(client_id)
            answer.save(force_insert=True)
            self.chat.touch(leaf=answer, active_at=timezone.now())
        return answer

    def lengthen(self, client_id: UUID) -> "Message":
        """Go on with this answer where it ended: a new run, the same message.

        A repeat changes nothing. Raises Busy, CannotContinue, NoModel.
        """
        with transaction.atomic():
            self.chat.lock()
            self.refresh_from_db()
            if self.continuation_id == client_id or self.is_answering:
                return self
            if self._running_version():
                raise Busy
            if self.children.exists():
                raise CannotContinue("The conversation has gone on since. Answer again instead.")
            self.generation = self._continuation()
            self.continuation_id = client_id
            self.save(update_fields=["generation", "continuation_id"])
            self.chat.touch(active_at=timezone.now())
        return self

    def _continuation(self) -> Generation:
        ended = self.generation
        if ended is None or not ended.can_continue:
            raise CannotContinue
        if ended.release.state == Release.State.RETIRED:
            raise NoModel("The model that wrote this is no longer served. Answer again instead.")
        return Generation.objects.enqueue(
            user=self.chat.user,
            release=ended.release,
            messages=ended.prompt.messages,
            parameters=ended.prompt.parameters,
            left_out_before=ended.prompt.left_out_before,
            lengthens=ended,
            arm=ended.arm,
            purpose=ended.purpose,
            branch=ended.branch,
        )

    def _running_version(self) -> "Message | None":
        versions: Iterable[Message] = Message.objects.filter(
            chat=self.chat_id, parent=self.parent_id, generation__status__in=Generation.ACTIVE
        ).select_related("chat", "generation")
        return next(iter(versions), None)
