"""Walking the tree of messages in one query, however long the chat is.

Recursive SQL, the same for SQLite and PostgreSQL: the ORM has none.
"""

from typing import TYPE_CHECKING
from uuid import UUID

from django.db import connection

if TYPE_CHECKING:
    from chats.models import Message

LINE = """
    WITH RECURSIVE line(id, parent_id, hop) AS (
        SELECT id, parent_id, 1 FROM chats_message WHERE id = %s
        UNION ALL
        SELECT m.id, m.parent_id, line.hop + 1
        FROM chats_message m JOIN line ON m.id = line.parent_id
        WHERE line.hop < %s
    )
    SELECT {columns} FROM line JOIN chats_message m ON m.id = line.id ORDER BY m.depth
"""
SHAPE = "m.id, m.parent_id, m.role, m.depth, LENGTH(m.text) AS characters"

NEWEST_LEAF = """
    WITH RECURSIVE below(id) AS (
        SELECT id FROM chats_message WHERE id = %s
        UNION ALL
        SELECT m.id FROM chats_message m JOIN below ON m.parent_id = below.id
    )
    SELECT below.id FROM below
    WHERE NOT EXISTS (SELECT 1 FROM chats_message c WHERE c.parent_id = below.id)
    ORDER BY below.id DESC LIMIT 1
"""


def line(end: UUID | None, limit: int) -> "list[Message]":
    """The message `end` and those above it, oldest first, at most `limit`."""
    return _line("m.*", end, limit)


def shape(end: UUID | None, limit: int) -> "list[Message]":
    """Like `line` without the texts; each message has `characters`, the length of its text."""
    return _line(SHAPE, end, limit)


def _line(columns: str, end: UUID | None, limit: int) -> "list[Message]":
    from chats.models import Message

    if end is None:
        return []
    return list(Message.objects.raw(LINE.format(columns=columns), [_key(end), limit]))


def newest_leaf(top: UUID) -> UUID:
    """The newest message below `top` (or itself) that has nothing below it."""
    from chats.models import Message

    leaf: UUID = Message.objects.raw(NEWEST_LEAF, [_key(top)])[0].pk
    return leaf


def _key(pk: UUID) -> object:
    from chats.models import Message

    return Message._meta.pk.get_db_prep_value(pk, connection)
