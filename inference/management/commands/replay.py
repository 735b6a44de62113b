"""manage.py replay ID…: answers made once more, alone; "identical" or the first difference."""

import asyncio
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet
from tqdm import tqdm

from accounts.models import User
from inference.engines.base import Engine, EngineError
from inference.management.commands.worker import ensure_tables
from inference.models import Generation, Release
from inference.replay import Verdict, prepared, replayed
from inference.sources import ModelFileError

OUTCOMES = {"identical": "identical", "differs": "differs", "impossible": "cannot be replayed"}
EXIT_DIFFERS, EXIT_IMPOSSIBLE = 1, 2


class Command(BaseCommand):
    help = (
        "Makes answers once more, alone, and compares them token by token. Exits with 1 when "
        "one differs, with 2 when none does but one cannot be replayed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("ids", nargs="*", type=UUID, metavar="ID", help="of a generation")
        parser.add_argument("--last", type=int, metavar="N", help="the newest N that have ended")
        parser.add_argument("--user", metavar="NAME", help="with --last: this person's only")

    def handle(self, *args: Any, **options: Any) -> None:
        ensure_tables()
        self.counts: Counter[str] = Counter()
        by_release: defaultdict[Release, list[Generation]] = defaultdict(list)
        for run in chosen(**{name: options[name] for name in ("ids", "last", "user")}):
            by_release[run.release].append(run)
        for release, runs in by_release.items():
            self._replay(release, runs)
        told = [f"{self.counts[kind]} {word}" for kind, word in OUTCOMES.items()]
        self.stdout.write(f"{', '.join(told)}.")
        if self.counts["differs"] or self.counts["impossible"]:
            raise SystemExit(EXIT_DIFFERS if self.counts["differs"] else EXIT_IMPOSSIBLE)

    def _replay(self, release: Release, runs: list[Generation]) -> None:
        try:
            asyncio.run(self._run(release.name, prepared(release), runs))
        except (ModelFileError, EngineError) as error:
            for run in runs:
                self._tell(Verdict(run, "impossible", str(error)))

    async def _run(self, name: str, engine: Engine, runs: list[Generation]) -> None:
        with tqdm(total=100, desc=f"Loading {name}", unit="%", leave=False) as bar:
            await engine.start(lambda percent: bar.update(percent - bar.n))
        tokens = sum(run.inherited_tokens + run.completion_tokens for run in runs)
        try:
            with tqdm(total=tokens, desc="Replaying", unit=" tokens", leave=False) as bar:
                async for verdict in replayed(engine, runs, bar.update):
                    with tqdm.external_write_mode():
                        self._tell(verdict)
        finally:
            await engine.stop()

    def _tell(self, verdict: Verdict) -> None:
        self.counts[verdict.kind] += 1
        run, outcome = verdict.run, OUTCOMES[verdict.kind]
        self.stdout.write(f"{run.pk} {run.release.name} {outcome}: {verdict.says}")
        for note in verdict.notes:
            self.stdout.write(f"    {note}")
        self.stdout.flush()


def chosen(ids: list[UUID], last: int | None, user: str | None) -> Iterable[Generation]:
    """Those named, then the newest that have ended. Raises CommandError."""
    runs = Generation.objects.select_related("prompt", "release__model")
    named = runs.in_bulk(ids)
    if missing := [str(pk) for pk in ids if pk not in named]:
        raise CommandError(f"There is no generation {', '.join(missing)}.")
    if last is None and (user or not ids):
        raise CommandError("Which answers? Name their generations, or say --last 10.")
    newest = _of(user, runs).exclude(status__in=Generation.ACTIVE).exclude(prompt=None)
    found = {run.pk: run for run in newest.order_by("-queued_at")[: last or 0]}
    return {**named, **found}.values()


def _of(name: str | None, runs: QuerySet[Generation]) -> QuerySet[Generation]:
    if name is None:
        return runs
    try:
        person = User.objects.get_by_natural_key(name)
    except User.DoesNotExist:
        raise CommandError(f"There is no user {name!r}.") from None
    return runs.filter(user=person)
