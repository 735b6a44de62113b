"""`manage.py models list | pull <model> | verify [model] | promote <model> | connect <model>`"""

import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from tqdm import tqdm

from inference import connecting
from inference.catalogue import CATALOGUE, Entry, register
from inference.engines.base import EngineError
from inference.model_files import ModelFileError, fetch, is_verified, path_of, verify
from inference.models import Release


class Bar:
    """A progress bar over bytes whose total may become known only later."""

    def __init__(self, title: str, out: Any) -> None:
        self.title, self.out = title, out
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = tqdm(
                desc=self.title, total=total or None, unit="B", unit_scale=True, file=self.out
            )
        self.bar.update(done - self.bar.n)
        if done == total:
            self.bar.close()


class Command(BaseCommand):
    help = "List the models this version knows, fetch a model file, or check one."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="what there is, and what is here")
        pull = verbs.add_parser("pull", help="fetch a model file, check it, register the model")
        pull.add_argument("model", choices=list(CATALOGUE))
        check = verbs.add_parser("verify", help="check model files against their hashes")
        check.add_argument("model", nargs="?", choices=list(CATALOGUE))
        promote = verbs.add_parser("promote", help="put a model's newest release live")
        promote.add_argument("model")
        connect = verbs.add_parser("connect", help="take a model server of yours into use")
        connecting.add_arguments(connect)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["verb"] == "connect":
                connecting.connect(self.stdout.write, **options)
            else:
                getattr(self, options["verb"])(options.get("model"))
        except (ModelFileError, EngineError) as error:
            raise CommandError(str(error)) from error

    def list(self, _: None = None) -> None:
        for entry in CATALOGUE.values():
            size = f"{entry.file_bytes / 1e6:.0f} MB" if entry.file_name else "no file"
            self.stdout.write(f"{entry.slug:<24} {_presence(entry):<9} {size:>8}  {entry.title}")
            self.stdout.write(f"{'':<24} {entry.description} License: {entry.license}.")

    def pull(self, slug: str) -> None:
        entry = CATALOGUE[slug]
        if not entry.source:
            self.stdout.write(f"{slug} needs no file.")
        elif is_verified(entry, settings.MODELS_DIR):
            self.stdout.write(f"{slug} is already here, verified.")
        else:
            self._fetch(entry)
        self._register(entry)

    def _fetch(self, entry: Entry) -> None:
        self.stdout.write(f"Fetching {entry.slug} ({entry.license}) from {entry.source}")
        self.stdout.flush()
        download, unpack = Bar("Downloading", sys.stderr), Bar("Unpacking", sys.stderr)
        fetch(entry, settings.MODELS_DIR, download, unpack)
        self.stdout.write(f"{entry.slug} is here, verified (SHA-256 {entry.file_sha256[:12]}…).")

    def _register(self, entry: Entry) -> None:
        try:
            release = register(entry)
        except DatabaseError:
            self.stdout.write("The database has no tables yet; serve will register the model.")
        else:
            self.stdout.write(f"Release {release} is registered ({release.state}).")

    def verify(self, slug: str | None) -> None:
        entries = [CATALOGUE[slug]] if slug else [e for e in CATALOGUE.values() if _is_here(e)]
        for entry in entries:
            if entry.source:
                verify(entry, settings.MODELS_DIR)
            self.stdout.write(f"{entry.slug}: right")
        if not entries:
            self.stdout.write("No model file is here.")

    def promote(self, slug: str) -> None:
        release = Release.objects.filter(model__slug=slug).order_by("-version").first()
        if release is None:
            raise CommandError(f"{slug} has no release yet. Run: ./manage.py models pull {slug}")
        Release.objects.filter(pk=release.pk).update(state=Release.State.LIVE)
        self.stdout.write(f"Release {release} is live.")


def _is_here(entry: Entry) -> bool:
    return bool(entry.source) and path_of(entry, settings.MODELS_DIR).exists()


def _presence(entry: Entry) -> str:
    if not entry.source:
        return "built in"
    return "here" if _is_here(entry) else "not here"
