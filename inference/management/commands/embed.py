"""manage.py embed "text" "text": how alike the embedding model finds them."""

import asyncio
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from inference.embeddings import embed
from inference.engines.base import EngineError
from inference.management.commands.worker import NO_TABLES

SHOWN_CHARACTERS = 60


class Command(BaseCommand):
    help = "Embeds texts and prints the cosine of each pair: 1 is the same direction, 0 unrelated."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("texts", nargs="+", metavar="TEXT")
        parser.add_argument("--model", default="", help="EMBEDDING_MODEL, if not given")

    def handle(self, *args: Any, **options: Any) -> None:
        if len(options["texts"]) < 2:
            raise CommandError("Name at least two texts: they are compared.")
        texts, model = options["texts"], options["model"] or settings.EMBEDDING_MODEL
        try:
            vectors = asyncio.run(embed(texts, model))
        except EngineError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(NO_TABLES) from error
        self.stdout.write(f"{model}: {len(vectors[0])} dimensions")
        self.stdout.write("    " + "".join(f"{n:>7}" for n in range(1, len(texts) + 1)))
        for number, (text, vector) in enumerate(zip(texts, vectors, strict=True), 1):
            cosines = "".join(f"{_cosine(vector, other):>7.3f}" for other in vectors)
            self.stdout.write(f"{number:>4}{cosines}  {' '.join(text.split())[:SHOWN_CHARACTERS]}")


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
