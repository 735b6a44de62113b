"""The list of chats by day, one keyset page at a time."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Any
from uuid import UUID

from django.utils import timezone

from chats.models import Chat

PAGE = 40
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Page:
    """Chats under headings; `before` is the cursor of the next page, or None."""

    groups: list[tuple[str, list[Chat]]]
    before: str | None


def page(user: Any, cursor: str = "", limit: int = PAGE) -> Page:
    """A page of the person's list. Raises ValueError for a cursor that is none."""
    before = _parse(cursor) if cursor else None
    found = Chat.objects.sidebar(user, before, limit + 1)
    shown = found[:limit]
    return Page(_grouped(shown), _cursor(shown[-1]) if len(found) > limit else None)


def _cursor(chat: Chat) -> str:
    return f"{(chat.active_at - EPOCH) // MICROSECOND}_{chat.pk.hex}"


def _parse(cursor: str) -> tuple[datetime, UUID]:
    time, _, pk = cursor.partition("_")
    try:
        return EPOCH + int(time) * MICROSECOND, UUID(hex=pk)
    except OverflowError as error:
        raise ValueError(cursor) from error


def _grouped(chats: list[Chat]) -> list[tuple[str, list[Chat]]]:
    today = timezone.localdate()
    headed = groupby(chats, key=lambda chat: heading(timezone.localdate(chat.active_at), today))
    return [(title, list(group)) for title, group in headed]


def heading(day: date, today: date) -> str:
    """Today, Yesterday, Previous 7 days, Previous 30 days, then months."""
    age = (today - day).days
    for days, title in ((0, "Today"), (1, "Yesterday"), (7, "Previous 7 days")):
        if age <= days:
            return title
    if age <= 30:
        return "Previous 30 days"
    return day.strftime("%B") if day.year == today.year else day.strftime("%B %Y")
