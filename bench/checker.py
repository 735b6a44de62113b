"""Whether the database keeps the invariants of generations, once everything has ended.

python -m bench.checker SECONDS, in the environment of a site: prints what is wrong after so long
(titles may still be under way when the last reader has left), a line each.
"""

import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from django.db.models import Count, F, Max, QuerySet, Window

if TYPE_CHECKING:
    from inference.models import Chunk, Generation


HEEDED = timedelta(seconds=20)  # a stop is, also by who takes over from a frozen worker


def check_run(run: "Generation") -> None:
    """Text, log and usage of one ended run agree, and its log has no hole and one end."""
    from inference.tokenlog import unpack

    chunks = list(run.chunks.filter(epoch=run.epoch).order_by("seq"))
    assert [chunk.seq for chunk in chunks] == list(range(1, len(chunks) + 1)), "a hole in the log"
    text = ""
    for chunk in chunks:
        assert chunk.offset == len(text), "text lost or repeated in the log"
        text += chunk.text
    assert run.text == text, "the answer is not what its log says"
    logged = [token for chunk in chunks for token in unpack(bytes(chunk.token_ids))]
    assert list(unpack(bytes(run.token_ids))) == logged, "tokens are not those of the log"
    counted = len(logged) - run.inherited_tokens
    assert run.completion_tokens == counted, f"{run.completion_tokens} counted, {counted} logged"
    ends = [chunk.kind for chunk in chunks if chunk.kind != "delta"]
    assert ends == [run.status], f"{run.status} ended with {ends}"
    assert run.log_seq == len(chunks), "the head is not at the log's end"


def _overtaken() -> "QuerySet[Chunk]":
    """Events by a worker that come after one by a later worker."""
    from inference.models import Chunk

    before = Window(Max("fence"), partition_by=["generation", "epoch"], order_by="seq")
    return Chunk.objects.annotate(highest=before).filter(fence__lt=F("highest"))


def complaints() -> Iterator[str]:
    """Everything that is wrong in this database, in words."""
    from chats.models import Message
    from inference.models import Generation

    for run in Generation.objects.filter(status__in=("queued", "running")):
        yield f"{run.pk} is {run.status} still"
    for run in Generation.objects.exclude(status__in=("queued", "running")):
        try:
            check_run(run)
        except AssertionError as error:
            yield f"{run.pk} ({run.status}, {run.attempts} attempts): {error}"
    for run in Generation.objects.filter(finished_at__gt=F("cancelled_at") + HEEDED):
        yield f"{run.pk} went on to {run.finished_at}, stopped at {run.cancelled_at}"
    for chunk in _overtaken():
        yield f"{chunk.generation_id}: event {chunk.seq} is by a worker that had been replaced"
    answered = Message.objects.filter(role="assistant", generation__isnull=False)
    for message in answered.select_related("generation"):
        if message.generation and message.text != message.generation.text:
            yield f"{message.pk} shows another text than {message.generation_id}"
    twice = Message.objects.filter(client_id__isnull=False).values("client_id")
    for row in twice.annotate(count=Count("pk")).filter(count__gt=1):
        yield f"{row['client_id']} was taken {row['count']} times"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    import django

    django.setup()
    deadline = time.monotonic() + float(sys.argv[1])
    while (found := list(complaints())) and time.monotonic() < deadline:
        time.sleep(1)
    print(*found, sep="\n", end="")


if __name__ == "__main__":
    main()
