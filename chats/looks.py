"""What one look at a run finds; the ends of many runs are looked at together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.template.loader import render_to_string

from chats import transcript
from chats.models import Message
from chats.progress import progress, with_lapse
from inference.models import Generation
from inference.tokenlog import Event, read_many

Frame = dict[str, Any]
Place = tuple[UUID, int, int]  # a run, and the epoch and the event up to which it was read
MAX_EVENTS = 256  # of one look: a reader who lags keeps no more than these in memory
MAX_HTML_CHARACTERS = 48 * 1024  # of an end; a larger one is fetched by HTTP
SHORT_CHARACTERS = 8 * 1024  # of an answer that is made HTML together with others


@dataclass(slots=True)
class Look:
    """What one look at a run found: new events, then how it is doing, then its end."""

    events: list[Event] = field(default_factory=list)
    state: Frame | None = None
    end: Frame | None = None
    has_more: bool = False

    @classmethod
    def at_text(cls, events: list[Event]) -> "Look":
        """At events after which there is at least one more, now or later."""
        return cls(events, {"status": "running"}, has_more=len(events) == MAX_EVENTS)


def look(pk: UUID, epoch: int, after: int) -> Look:
    """What is new after (epoch, after), or how the run is doing, or its end."""
    events = Generation(pk=pk).log.read(epoch, after, MAX_EVENTS)
    if events and not events[-1].is_terminal:
        return Look.at_text(events)
    run = with_lapse().filter(pk=pk).first()
    if run is None:
        end = {"type": "end", "generation": pk, "epoch": 0, "seq": 0, "html": ""}
        return Look(end=end | {"status": Generation.Status.INTERRUPTED})
    if run.is_active:
        return Look(state=progress(run).frame())
    (found,) = _ends({pk: run}, [(pk, epoch, after)])
    return found


def ends(places: Sequence[Place]) -> list[Look | None]:
    """The rest and the end of each that has ended and is short; None for the others.

    A long answer takes half a second to become HTML, for which all the others would wait.
    """
    asked = {place[0] for place in places}
    runs = with_lapse().filter(pk__in=asked, log_characters__lte=SHORT_CHARACTERS)
    ended = {run.pk: run for run in runs if not run.is_active}
    found = iter(_ends(ended, [place for place in places if place[0] in ended]) if ended else [])
    return [next(found) if pk in ended else None for pk, *_ in places]


def _ends(runs: dict[UUID, Generation], places: Sequence[Place]) -> list[Look]:
    """In the same number of queries, however many.

    Everything they wrote is in the database, whatever became of their live logs; the logs of
    those that ended long ago may be gone, and the rows tell the end.
    """
    rest = read_many(places, MAX_EVENTS)
    shown = _shown(list(runs))
    return [
        _end(runs[pk], events, shown.get(pk, ""))
        for (pk, *_), events in zip(places, rest, strict=True)
    ]


def _shown(ids: list[UUID]) -> dict[UUID | None, str | None]:
    """The HTML of their messages; None of what is too long for a frame."""
    messages = list(Message.objects.filter(generation__in=ids))
    html: dict[UUID | None, str | None] = dict.fromkeys(m.generation_id for m in messages)
    short = [message for message in messages if len(message.text) <= MAX_HTML_CHARACTERS]
    return html | {row.message.generation_id: _html(row) for row in transcript.rows_of(short)}


def _end(run: Generation, events: list[Event], html: str | None) -> Look:
    if len(events) == MAX_EVENTS and not events[-1].is_terminal:
        return Look.at_text(events)
    end = {"type": "end", "generation": run.pk, "epoch": run.epoch, "seq": run.log_seq}
    end |= {"status": run.status, "html": html}
    return Look([event for event in events if not event.is_terminal], end=end)


def _html(row: transcript.Row) -> str | None:
    """The partial of the page, without a request; None when it is too long for a frame.

    Its forms carry no CSRF token: the page's own form has one.
    """
    html = render_to_string("chats/_message.html", {"row": row})
    return html if len(html.encode()) <= MAX_HTML_CHARACTERS else None
