"""`manage.py doctor`: looks at the whole installation and says what is wrong and what to do."""

import importlib.util
import os
import shutil
import sqlite3
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.checks import ERROR, run_checks
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from chatsite import health
from chatsite.checks import exact_build
from chatsite.finders import NpmFinder
from chatsite.postgresql import room
from chatsite.supervisor import CannotServe, address_to_show, check_port, is_listening
from inference import redis_server
from inference.catalogue import CATALOGUE
from inference.engines.base import EngineError
from inference.management.commands.worker import served_release
from inference.model_files import of_entry, of_release, verify
from inference.models import Release, Worker
from inference.sources import ModelFileError

OLDEST_PYTHON = (3, 11)
ENOUGH_DISK_GB = 1.0
REPORTED_ABOVE = {"chatsite.E001", "chatsite.E020"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. What is only optional never fails the installation."""

    what: str
    problem: str = ""
    is_optional: bool = False

    @property
    def mark(self) -> str:
        return "✓" if not self.problem else "-" if self.is_optional else "✗"

    def __str__(self) -> str:
        return f"{self.mark} {self.what}{': ' if self.problem else ''}{self.problem}"


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    is_old = sys.version_info < OLDEST_PYTHON
    return Finding(f"Python {version}", "3.11 or later is needed" if is_old else "")


def compiler() -> Finding:
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
    problem = "none found; needed to install again (apt-get install build-essential)"
    return Finding(f"C++ compiler {found}".strip(), "" if found else problem, is_optional=True)


def disk() -> Finding:
    free = shutil.disk_usage(settings.DATA_DIR).free / 1e9
    problem = "free some space" if free < ENOUGH_DISK_GB else ""
    return Finding(f"Disk space for data ({free:.1f} GB free)", problem)


def data_folder() -> Finding:
    can_write = os.access(settings.DATA_DIR, os.W_OK | os.X_OK)
    problem = "cannot be written to; change its owner, or name another in DATA_DIR"
    return Finding(f"Data folder {settings.DATA_DIR}", "" if can_write else problem)


def database() -> Finding:
    name = f"SQLite {sqlite3.sqlite_version}" if connection.vendor == "sqlite" else "PostgreSQL"
    try:
        health.database_answers()
        health.migrations_are_applied()
    except DatabaseError as error:
        return Finding(f"Database ({name})", f"does not answer: {str(error).strip()}")
    except health.NotReady as error:
        return Finding(f"Database ({name})", str(error))
    return Finding(f"Database ({name}), migrated")


def connections() -> Finding:
    """How many processes of a cluster the database has room for."""
    if connection.vendor != "postgresql":
        return Finding("Connections to the database: any number of processes of this machine")
    each = settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"]
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW max_connections")
            allowed = int(cursor.fetchone()[0])
    except DatabaseError:
        return Finding("Connections to the database", "not known: it does not answer")
    fit = room.processes(allowed, each)
    what = f"Connections to the database: {allowed}, so {fit} processes of up to {each}"
    problem = "raise max_connections of PostgreSQL or lower DATABASE_POOL" if fit < 2 else ""
    return Finding(what, problem)


def redis() -> Finding:
    if not settings.REDIS_URL:
        return Finding("Redis: none, and not needed on one machine")
    server = redis_server.server()
    try:
        told: Any = server.call(server.client.info)
    except redis_server.Away as error:
        return Finding("Redis", f"does not answer ({error}); the database serves instead")
    version = (
        f"{told.get('server_name', 'redis')} {told.get('valkey_version', told['redis_version'])}"
    )
    policy = told.get("maxmemory_policy", "noeviction")
    problem = "" if policy == "noeviction" else "set maxmemory-policy to noeviction"
    return Finding(f"Redis ({version}, {policy})", problem)


def model_file() -> Finding:
    try:
        release = Release.objects.serving()
    except DatabaseError:
        release = None  # told above
    entry = CATALOGUE.get(settings.MODEL)
    if release and release.engine == "upstream":
        return model_servers(release)
    if release:
        wanted = of_release(release)
    elif entry:
        wanted = of_entry(entry, settings.MODELS_DIR)
    else:
        return Finding(f"Model {settings.MODEL}", why_nothing_is_served())
    if not wanted.size:  # what a package brings has a hash, but no file here
        return Finding(f"Model {settings.MODEL}, built in")
    try:
        verify(wanted)
    except ModelFileError as error:
        return Finding(f"Model file of {settings.MODEL}", str(error))
    return Finding(f"Model file of {settings.MODEL}, SHA-256 verified")


def why_nothing_is_served() -> str:
    """As a worker says it."""
    try:
        served_release()
    except CommandError as error:
        return str(error)
    return ""


def model_servers(release: Release) -> Finding:
    """Asked from here, with the keys that this command's environment has."""
    from inference.connecting import describe

    servers = list(release.backends.all())
    what = f"Servers of {release} ({', '.join(server.name for server in servers) or 'none'})"
    troubles = []
    for server in servers:
        try:
            describe(server)
        except EngineError as error:
            troubles.append(f"{server.name}: {error}")
    return Finding(what, "; ".join(troubles) if servers else "run ./manage.py models connect")


def workers() -> Finding:
    """Of all machines, heard of lately. A site that is not running has none, and is well."""
    try:
        states = Counter(Worker.objects.living().values_list("state", flat=True))
    except DatabaseError:
        return Finding("Workers", "not known: the database does not answer", is_optional=True)
    if not states:
        return Finding("Workers", "none is running; questions wait for one", is_optional=True)
    return Finding("Workers: " + ", ".join(f"{count} {state}" for state, count in states.items()))


def llama_cpp() -> Finding:
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        return Finding("llama-cpp-python", f"does not load ({reason}); run make clean, make run")
    told = "".join(f"{found.msg} {found.hint} ({found.id})" for found in exact_build())
    return Finding(f"llama-cpp-python {llama_cpp.__version__} loads", told, is_optional=True)


def port() -> Finding:
    """A taken port is what a running site looks like too, so it fails nothing."""
    what = f"Port {settings.PORT} on {settings.HOST}"
    try:
        check_port()
    except CannotServe as error:
        if is_listening(address_to_show()):
            return Finding(f"{what}: a site is running there")
        return Finding(what, str(error), is_optional=True)
    return Finding(f"{what} is free")


def assets() -> Finding:
    missing = [str(message.msg) for message in NpmFinder().check()]
    problem = f"{' '.join(missing)} Run make run, which installs them" if missing else ""
    return Finding("Front-end packages", problem)


def browser() -> Finding:
    found = next((name for name in BROWSERS if shutil.which(name)), "")
    problem = "not here; the browser tests are left out (apt-get install chromium)"
    return Finding(f"Chromium for tests {found}".strip(), "" if found else problem, True)


def test_tools() -> Finding:
    is_here = importlib.util.find_spec("pytest") is not None
    return Finding("Test tools", "" if is_here else "not installed; make test does it", True)


def system_checks() -> Finding:
    errors = [m for m in run_checks() if m.level >= ERROR and m.id not in REPORTED_ABOVE]
    return Finding("System checks", "; ".join(f"{e.msg} {e.hint or ''}".strip() for e in errors))


EXAMINATIONS: tuple[Callable[[], Finding], ...] = (
    python,
    compiler,
    disk,
    data_folder,
    database,
    connections,
    redis,
    model_file,
    workers,
    llama_cpp,
    port,
    assets,
    browser,
    test_tools,
    system_checks,
)


class Command(BaseCommand):
    help = "Check the installation and say what is wrong. Exits with 1 when something is."
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.epilog = "✓ is right, ✗ is wrong, - is missing but not needed to run."

    def handle(self, *args: Any, **options: Any) -> None:
        findings = list(self._examine())
        wrong = sum(finding.mark == "✗" for finding in findings)
        self.stdout.write(f"{wrong} wrong" if wrong else "All is well.")
        if wrong:
            raise SystemExit(1)

    def _examine(self) -> Iterator[Finding]:
        for examination in EXAMINATIONS:
            finding = examination()
            self.stdout.write(str(finding))
            self.stdout.flush()
            yield finding
