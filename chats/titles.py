"""Automatic titles: asked of the model after the first answer, tidied, never over a person's."""

import re
from uuid import UUID

from django.db import IntegrityError

from chats.models import Chat, Message
from chats.refusals import Refusal
from chats.wording import shortened, tidy
from inference.models import Generation

BRANCH = "title:"
PRIORITY_BEHIND_ANSWERS = 50
PARAMETERS = {"temperature": 0, "max_tokens": 24}
SEEN_CHARACTERS = 600
EMPTY_WORDS = frozenset("the and for you your with from how what why this that not are".split())
EXAMPLE_QUESTION = "How do I keep basil alive on a window sill in winter?"
EXAMPLE_TITLE = "Growing Basil in Winter"
EXAMPLE_WORDS = frozenset("grow growing basil winter window sill".split())
COMMON = 2  # of the messages of `prompt`


def wants_title(answer: Message) -> bool:
    chat = answer.chat
    return bool(chat.title_is_automatic and not chat.title and answer.text and answer.parent)


def ask_for_title(answer: Message, run: Generation) -> Generation:
    """Queue a title for the chat of its first answer, which `run` made.

    Raises Refusal when one is on its way; the transaction, or savepoint, is to be rolled back.
    """
    question = answer.parent
    assert question is not None
    try:
        return Generation.objects.enqueue(
            user=run.user,
            release=run.release,
            arm=run.arm,
            messages=prompt(question.text),
            common=COMMON,
            parameters=PARAMETERS,
            purpose=Generation.Purpose.TITLE,
            branch=f"{BRANCH}{answer.chat_id}",
            priority=run.user.priority + PRIORITY_BEHIND_ANSWERS,
        )
    except IntegrityError as error:
        raise Refusal("A title is on its way.") from error


def prompt(question: str) -> list[dict[str, str]]:
    """One worked example is worth more to a small model than any rule."""
    ask = "Give a title of two to five words for this message:\n\n"
    return [
        {"role": "user", "content": f"{ask}{EXAMPLE_QUESTION}"},
        {"role": "assistant", "content": EXAMPLE_TITLE},
        {"role": "user", "content": f"{ask}{question[:SEEN_CHARACTERS]}"},
    ]


def store_title(run: Generation) -> None:
    """Name the chat after a finished title run; after its first question if that said nothing."""
    chat = Chat.objects.filter(
        pk=UUID(run.branch.removeprefix(BRANCH)), user_id=run.user_id, deleted_at=None
    ).first()
    if chat is None or not chat.title_is_automatic or chat.title:
        return
    question = chat.messages.filter(role=Message.Role.USER).order_by("id").first()
    asked = question.text if question else ""
    title = tidy(run.text)
    chat.name_automatically(title if is_about(title, asked) else shortened(asked))


def is_about(title: str, question: str) -> bool:
    """Whether they share a word: a small model at a loss repeats the worked example."""
    words = set(re.findall(r"\w{3,}|[^\W\x00-\x7f]{2,}", title.casefold())) - EMPTY_WORDS
    # Beginnings, so that "find" and "finding" are one; two characters say enough in Chinese.
    shared = {word for word in words if word[: 4 if word.isascii() else 2] in question.casefold()}
    return bool(shared) and not (words - shared) & EXAMPLE_WORDS
