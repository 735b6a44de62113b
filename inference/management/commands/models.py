"""`manage.py models`: list, pull, verify, promote, rollback, retire, warm, connect, tune, work."""

import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError
from django.db.models import QuerySet
from tqdm import tqdm

from deploy import lifeline
from inference import connecting, file_work
from inference.catalogue import CATALOGUE, Entry, register
from inference.engines.base import EngineError
from inference.management.commands.worker import ensure_tables, named_model, named_release
from inference.model_files import Wanted, fetch, is_verified, of_entry, of_release, verify
from inference.models import Release, Worker
from inference.pulls import Pull
from inference.releases import ReleaseError
from inference.sources import EXAMPLES, ModelFileError
from inference.tuning import tune as tuning

BY = "manage.py models {}"
POLL_SECONDS = 0.1
NO_WORKER_SECONDS = 30.0  # a running site starts one within a second or two


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
    help = "List models and releases, fetch model files, choose which release people get."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="what there is, and what is here")
        pull = verbs.add_parser("pull", help="fetch a model file, check it, record a release")
        pull.add_argument("source", help=f"a name from the list, or {EXAMPLES}")
        pull.add_argument("--name", help="the model it is a release of, such as my-model")
        pull.add_argument("--title", help="what people see")
        pull.add_argument("--sha256", default="", help="what the file must hash to")
        pull.add_argument("--trust-first-use", action="store_true", help="record any hash it has")
        pull.add_argument("--context", type=int, help="tokens it may see; its own number if not")
        check = verbs.add_parser("verify", help="check model files against their hashes")
        check.add_argument("model", nargs="?")
        rollback = verbs.add_parser("rollback", help="put live what the live release replaced")
        rollback.add_argument("model")
        for verb, what in {
            "promote": "let people get a release",
            "retire": "let nobody get a release any more",
            "warm": "load a release ahead of a promotion, and wait until it is",
        }.items():
            named = verbs.add_parser(verb, help=what)
            named.add_argument("release", help="SLUG@VERSION; SLUG is its newest")

        verbs.add_parser("work", help="do what was asked for in the admin, as workers do")
        connect = verbs.add_parser("connect", help="take a model server of yours into use")
        connecting.add_arguments(connect)
        tune = verbs.add_parser("tune", help="find the best weight format for this machine")
        tuning.add_arguments(tune)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] not in ("list", "verify") and options.get("source") not in CATALOGUE:
            ensure_tables()  # (`make run` fetches the default model before there are any)
        try:
            getattr(self, options["verb"])(**options)
        except (ModelFileError, EngineError, ReleaseError) as error:
            raise CommandError(str(error)) from error

    def say(self, sentence: str) -> None:
        self.stdout.write(sentence)
        self.stdout.flush()

    # --- what there is --------------------------------------------------------------------
    def list(self, **_: Any) -> None:
        for entry in CATALOGUE.values():
            size = f"{entry.file_bytes / 1e6:.0f} MB" if entry.file_name else "no file"
            self.say(f"{entry.slug:<24} {_presence(entry):<9} {size:>8}  {entry.title}")
            self.say(f"{'':<24} {entry.description} License: {entry.license}.")
        for release in _releases():
            here = "" if not release.weights_file or release.weights_path.exists() else "not here"
            size = f"{release.weights_bytes / 1e6:.0f} MB" if release.weights_file else "no file"
            digest = release.weights_sha256[:12]
            self.say(
                f"{release.name:<24} {release.state:<9} {size:>8}  {release.engine} "
                f"{digest} {release.weights_file} {here}".rstrip()
            )

    def verify(self, model: str | None = None, **_: Any) -> None:
        releases = list(_releases(model))
        entries = [entry for entry in CATALOGUE.values() if entry.slug == (model or entry.slug)]
        if not entries and not releases and model:
            raise CommandError(f"There is no model {model!r}. See: ./manage.py models list")
        files = [of_release(release) for release in releases if release.weights_file]
        # Last, so that their cure is the one told; a name asked for has to be here.
        files += [_of_entry(e) for e in entries if e.source and (model or _is_here(e))]
        for file in {file.path: file for file in files}.values():
            verify(file)
            self.say(f"{file.path.name}: right")
        if not files:
            self.say(f"{model} has no file." if model else "No model file is here.")

    # --- fetching -------------------------------------------------------------------------
    def pull(self, source: str, **options: Any) -> None:
        if source in CATALOGUE:
            self._pull_known(CATALOGUE[source])
        elif ":" in source:
            self._pull_from(source, **options)
        else:
            known = ", ".join(CATALOGUE)
            raise CommandError(f"There is no model {source!r}. Known: {known}. Or: {EXAMPLES}.")

    def _pull_known(self, entry: Entry) -> None:
        if not entry.source:
            self.say(f"{entry.slug} needs no file.")
        elif is_verified(_of_entry(entry)):
            self.say(f"{entry.slug} is already here, verified.")
        else:
            self.say(f"Fetching {entry.slug} ({entry.license}) from {entry.source}")
            bars = Bar("Downloading", sys.stderr), Bar("Unpacking", sys.stderr)
            fetch(entry.source, _of_entry(entry), *bars)
            self.say(f"{entry.slug} is here, verified (SHA-256 {entry.file_sha256[:12]}…).")
        try:
            release = register(entry, BY.format("pull"))
        except DatabaseError:
            self.say("The database has no tables yet; serve will register the model.")
        else:
            self.say(f"Release {release} is registered ({release.state}).")

    def _pull_from(self, written: str, **options: Any) -> None:
        order = Pull.of(written, **options)
        self.say(f"Fetching {order.path.name} from {written}")
        bars = Bar("Downloading", sys.stderr), Bar("Unpacking", sys.stderr)
        release = order.run(*bars, by=BY.format("pull"))
        self.say(f"{order.path.name} is here, and it loads (SHA-256 {release.weights_sha256}).")
        self.say(f"Release {release.name} is recorded ({release.state}).")

    def connect(self, model: str, **options: Any) -> None:
        connecting.connect(self.say, model, BY.format("connect"), **options)

    def tune(self, model: str, **options: Any) -> None:
        entry = CATALOGUE.get(model)
        if entry and _is_here(entry) and is_verified(_of_entry(entry)):
            register(entry, BY.format("tune"))  # a file that was copied here, not pulled
        tuning.tune(self.say, named_model(model), BY.format("tune"), **options)

    def work(self, **_: Any) -> None:
        lifeline.follow()
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        file_work.do_all(lambda: os.kill(os.getpid(), signal.SIGTERM))

    # --- who gets what --------------------------------------------------------------------
    def promote(self, release: str, **_: Any) -> None:
        found = named_release(release)
        found.examine()
        found.promote(BY.format("promote"))
        self.say(f"Release {found} is live.")

    def rollback(self, model: str, **_: Any) -> None:
        self.say(f"Release {named_model(model).roll_back(BY.format('rollback'))} is live again.")

    def retire(self, release: str, **_: Any) -> None:
        found = named_release(release)
        found.retire(BY.format("retire"))
        self.say(f"Release {found} is retired.")

    def warm(self, release: str, **_: Any) -> None:
        found = named_release(release)
        found.warm(BY.format("warm"))
        with tqdm(total=100, desc=f"Loading {found.name}", unit="%", file=sys.stderr) as bar:
            _wait_until_loaded(found, lambda percent: bar.update(percent - bar.n))
        self.say(f"Release {found} is loaded. Let people get it: promote {found.name}")


def _wait_until_loaded(release: Release, progress: Callable[[int], object]) -> None:
    """Until a worker is ready. Raises CommandError when none comes, or the file is broken."""
    deadline = time.monotonic() + NO_WORKER_SECONDS
    while True:
        workers = list(Worker.objects.living().filter(release=release))
        if any(worker.state == Worker.State.READY for worker in workers):
            progress(100)
            return
        release.refresh_from_db(fields=["warm_until"])
        if release.warm_until is None:
            raise CommandError(f"{release} could not be loaded: {release.last_fault()}")
        if not workers and time.monotonic() > deadline:
            raise CommandError("No site is running on this data that could load it. Start it.")
        progress(max((worker.percent_loaded for worker in workers), default=0))
        time.sleep(POLL_SECONDS)


def _releases(slug: str | None = None) -> QuerySet[Release]:
    """All, or those of a model; none while the database has no tables."""
    releases = Release.objects.select_related("model").order_by("model__slug", "version")
    try:
        releases.exists()
    except DatabaseError:
        return releases.none()
    return releases.filter(model__slug=slug) if slug else releases


def _of_entry(entry: Entry) -> Wanted:
    return of_entry(entry, settings.MODELS_DIR)


def _is_here(entry: Entry) -> bool:
    return bool(entry.source) and _of_entry(entry).path.exists()


def _presence(entry: Entry) -> str:
    if not entry.source:
        return "built in"
    return "here" if _is_here(entry) else "not here"
