"""What a page shows of a chat: a window of one branch, always in the same number of queries."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db.models import Exists, F, OuterRef, Q
from django.utils.safestring import SafeString

from chats import tree
from chats.markdown import render
from chats.models import Chat, Message
from chats.progress import progress
from inference.models import Generation

WINDOW = 60
Place = tuple[UUID, UUID | None, str]  # chat, parent, role: what versions of a message share


@dataclass(slots=True)
class Row:
    """One message as `chats/_message.html` shows it.

    For a running answer `text` is what is in its log up to `epoch` and `seq`.
    """

    message: Message
    text: str
    html: SafeString = field(default_factory=SafeString)
    generation: Generation | None = None
    state: str = "done"
    seq: int = 0
    epoch: int = 0
    finish: str = ""  # why this is all of the text, though the end is still being written
    position: int | None = None
    away: bool = False
    percent: int | None = None
    wait: int | None = None
    left_out: int = 0
    cut_characters: int = 0
    is_summarised: bool = False
    is_followed: bool = False  # by another question
    versions: list[UUID] = field(default_factory=list)

    @property
    def can_continue(self) -> bool:
        """As Generation.can_continue, without reading the run's own copy of the text."""
        ended_early = self.generation and self.generation.ended_early
        return bool(ended_early and self.text and not self.is_followed)

    @property
    def version_number(self) -> int:
        return self.versions.index(self.message.pk) + 1

    @property
    def previous_version(self) -> UUID | None:
        return self._version(self.version_number - 1)

    @property
    def next_version(self) -> UUID | None:
        return self._version(self.version_number + 1)

    def _version(self, number: int) -> UUID | None:
        return self.versions[number - 1] if 0 < number <= len(self.versions) else None


def rows(chat: Chat, before: Message | None = None, limit: int = WINDOW) -> list[Row]:
    """The end of the branch shown, or what comes above `before`; oldest first."""
    end = before.parent_id if before else chat.leaf_id
    return rows_of(tree.line(end, limit))


def older_before(window: list[Row]) -> UUID | None:
    """The `before` of the window above this one; None at the top."""
    return window[0].message.pk if window and window[0].message.parent_id else None


def rows_of(messages: list[Message]) -> list[Row]:
    """Rows for these messages, in the same number of queries however many."""
    runs = _runs(messages)
    versions = _versions(messages)
    return [
        _row(message, runs.get(message.generation_id), versions[_place(message)])
        for message in messages
    ]


def new_rows(question: Message, answer: Message) -> list[Row]:
    """Rows for a question without siblings and its answer, both just stored: nothing is read.

    How far the run is, the reader learns by watching it from the beginning.
    """
    run = answer.generation
    return [
        Row(question, question.text, versions=[question.pk]),
        Row(answer, "", generation=run, state="queued", versions=[answer.pk]),
    ]


def _runs(messages: Iterable[Message]) -> dict[UUID | None, Any]:
    found = (
        Generation.objects.filter(pk__in=[m.generation_id for m in messages if m.generation_id])
        .defer("text", "token_ids")
        .annotate(
            not_seen=F("prompt__left_out") + F("prompt__left_out_before"),
            cut=F("prompt__cut_characters"),
            summarised=Q(prompt__summary__gt=""),
            followed=Exists(Message.objects.filter(parent__generation=OuterRef("pk"))),
        )
    )
    return {run.pk: run for run in found}


def _versions(messages: list[Message]) -> dict[Place, list[UUID]]:
    """The ids beside each message, oldest first."""
    found: dict[Place, list[UUID]] = defaultdict(list)
    if not messages:
        return found
    parents = [m.parent_id for m in messages if m.parent_id]
    beside = Q(parent__in=parents)
    if any(m.parent_id is None for m in messages):
        beside |= Q(parent=None)
    siblings = Message.objects.filter(beside, chat__in={m.chat_id for m in messages})
    for sibling in siblings.order_by("id").only("id", "chat_id", "parent_id", "role"):
        found[_place(sibling)].append(sibling.pk)
    return found


def _place(message: Message) -> Place:
    return message.chat_id, message.parent_id, message.role


def _row(message: Message, run: Any, versions: list[UUID]) -> Row:
    row = Row(message, message.text, generation=run, versions=versions)
    if message.role == Message.Role.USER:
        return row
    if run:
        row.state, row.seq, row.epoch = run.status, run.log_seq, run.epoch
        row.left_out, row.cut_characters = run.not_seen or 0, run.cut or 0
        row.is_summarised, row.is_followed = bool(run.summarised), run.followed
        if run.is_active:
            _follow(row, run)
        elif len(message.text) != run.log_characters:
            # It ended between the reading of the message and that of the run.
            message.refresh_from_db(fields=["text"])
            row.text = message.text
    row.html = render(row.text)
    return row


def _follow(row: Row, run: Generation) -> None:
    """Fill in a run that goes on: text, seq and epoch come from one read, so they agree."""
    events = [event for event in run.log.read(run.epoch, 0) if not event.is_terminal]
    row.text = "".join(event.text for event in events)
    row.seq = events[-1].seq if events else 0
    row.epoch = events[-1].epoch if events else run.epoch
    row.finish = events[-1].finish if events else ""
    now = progress(run)
    row.state, row.position, row.percent, row.wait = now.status, now.position, now.percent, now.wait
    row.away = now.away
