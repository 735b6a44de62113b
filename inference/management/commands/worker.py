"""manage.py worker: run generations of one release until told to stop, or nothing needs it."""

import os
from argparse import ArgumentTypeError
from typing import Any
from uuid import UUID, uuid4

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection

from inference.catalogue import CATALOGUE, EMBEDDERS
from inference.engines.base import EngineError
from inference.models import Alias, Model, Release
from inference.releases import ReleaseError
from inference.wakeups import LANES
from inference.worker import WorkerProcess

NO_TABLES = "The database has no tables yet. Start the site: make run"
EXIT_UNUSABLE = 78  # the model cannot be loaded: starting again would not help


def names() -> set[str]:
    """Of every model that can answer, and of every alias."""
    stored = (
        slug for kind in (Model, Alias) for slug in kind.objects.values_list("slug", flat=True)
    )
    return {*CATALOGUE, *stored} - EMBEDDERS


def ensure_tables() -> None:
    """Raises CommandError in a DATA_DIR in which no site was ever started, or a mistyped one."""
    if Release._meta.db_table not in connection.introspection.table_names():
        raise CommandError(NO_TABLES)


def served_release() -> Release:
    """What people get. Raises CommandError with what to do when there is nothing."""
    models = "./manage.py models"
    try:
        release = Release.objects.serving()
        known = names()
    except DatabaseError as error:
        raise CommandError(NO_TABLES) from error
    if settings.MODEL not in known:
        raise CommandError(
            f"No model {settings.MODEL!r} answers people. Known: {', '.join(sorted(known))}"
        )
    if release is None and Alias.objects.filter(slug=settings.MODEL).exists():
        raise CommandError(f"No arm of the alias {settings.MODEL} has a live release.")
    if release is None and Release.objects.filter(model__slug=settings.MODEL).exists():
        raise CommandError(f"No release of it is live. Run: {models} promote {settings.MODEL}")
    if release is None:
        raise CommandError(f"There is no model yet. Run: {models} pull {settings.MODEL}")
    return release


def named_model(slug: str) -> Model:
    model = Model.objects.filter(slug=slug).first()
    if model is None:
        raise CommandError(f"{slug!r} has no release here. See: ./manage.py models list")
    return model


def named_release(name: str) -> Release:
    """The release SLUG@VERSION, or SLUG's newest. Raises CommandError."""
    slug, _, version = name.partition("@")
    model = named_model(slug)
    if version and not version.isdigit():
        raise CommandError(f"{name!r} is not the name of a release, such as {slug}@2.")
    try:
        return model.release(int(version) if version else None)
    except ReleaseError as error:
        raise CommandError(str(error)) from error


def lanes(text: str) -> tuple[str, ...]:
    """Raises ArgumentTypeError for one that is not known."""
    chosen = tuple(dict.fromkeys(text.split(",")))
    if unknown := sorted(set(chosen) - set(LANES)):
        raise ArgumentTypeError(f"There is no lane {unknown[0]!r}. Known: {', '.join(LANES)}")
    return chosen


def queues(text: str) -> tuple[str, tuple[str, ...]]:
    """The release and the lanes of a list of queues, NAME[@VERSION][.LANE] each.

    Raises ArgumentTypeError when they are of several releases: a process has one model.
    """
    names: set[str] = set()
    chosen: list[str] = []
    for queue in text.split(","):
        name, _, lane = queue.rpartition(".")
        if "@" in name and lane not in LANES:
            lanes(lane)  # versions have no dots
        names.add(name if lane in LANES else queue)
        chosen += [lane] if lane in LANES else LANES
    if len(names) > 1:
        raise ArgumentTypeError("A worker has one model. Start one for each.")
    return names.pop(), lanes(",".join(chosen))


class Command(BaseCommand):
    help = "Runs generations of a release until it gets SIGTERM or nothing needs the release."

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--release", help="SLUG@VERSION; what people get, if not given")
        which.add_argument(
            "-Q", "--queues", type=queues, metavar="SLUG@VERSION.LANE,…",
            help="the same with lanes: smollm2@1.interactive; without a lane both",
        )  # fmt: skip
        parser.add_argument(
            "--lanes", type=lanes, metavar=",".join(LANES),
            help="what it takes: what people wait for, what can wait, or both (the default)",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        if options["queues"] and options["lanes"]:
            raise CommandError("-Q names the lanes. Leave --lanes out.")
        name, chosen = options["queues"] or (options["release"], options["lanes"] or tuple(LANES))
        release = named_release(name) if name else served_release()
        boot_id = UUID(os.environ.get("CHATSITE_BOOT_ID") or str(uuid4()))
        try:
            uvloop.run(WorkerProcess(release, boot_id, chosen).run())
        except EngineError as error:
            release.found_broken(str(error))
            raise CommandError(str(error), returncode=EXIT_UNUSABLE) from error
