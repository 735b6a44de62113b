"""What follows from the end of a run, decided in the transaction that ends it."""

import logging
from collections.abc import Callable

from django.db import OperationalError, transaction

from chats.models import Message
from chats.refusals import Refusal
from chats.titles import ask_for_title, store_title, wants_title
from inference.models import Generation

logger = logging.getLogger(__name__)


def settle(generation: Generation) -> None:
    """Called in the finishing transaction, in the process that ends the run (GENERATION_FINISHED).

    The answer's text and the chat's version change with the run or not at all. What is
    only started here (the next message, the title) must never take the answer down with it,
    except for a moment.
    """
    if generation.purpose == Generation.Purpose.TITLE:
        _attempt(lambda: store_title(generation))
    elif generation.purpose == Generation.Purpose.CHAT:
        _settle_answer(generation)


def _settle_answer(generation: Generation) -> None:
    # With its chat, which is locked first; in a burst of ends, each query counts.
    found = Message.objects.filter(generation=generation).select_related("chat", "parent")
    answer = found.select_for_update(of=("chat",)).first()
    if answer is None:
        return
    answer.text = generation.text
    answer.save(update_fields=["text"])
    answer.chat.touch_locked()
    if answer.chat.deleted_at is None and generation.user.is_active:
        if answer.chat.pending.exists():  # locked: none can come now
            _attempt(answer.chat.ask_next)
        if wants_title(answer):
            _attempt(lambda: ask_for_title(answer, generation))


def _attempt(follow_up: Callable[[], object]) -> None:
    try:
        with transaction.atomic():
            follow_up()
    except Refusal as refusal:
        logger.info("Not now: %s", refusal)
    except OperationalError:
        raise  # a lock or a lost connection: the whole end is tried again, and this with it
    except Exception:
        logger.exception("A follow-up of a finished run failed; the run itself is kept.")
