"""manage.py migrate-store: from SQLite to PostgreSQL, and back again."""

import os
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections
from tqdm import tqdm

from chatsite.moving import CannotMove, Move


class Command(BaseCommand):
    help = (
        "Copies everything from one database into an empty other one and compares both. Stop the "
        "site first. What broke off goes on when it is started again."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's own declaration

    def add_arguments(self, parser: CommandParser) -> None:
        example = (
            "sqlite:////folder/chatsite.sqlite3, postgresql://user@host/name, or env:NAME for what "
            "that variable holds: a password given here can be read in the list of processes."
        )
        parser.add_argument("--from", required=True, dest="source", help=example)
        parser.add_argument("--to", required=True, dest="target", help=example)

    def handle(self, *args: Any, **options: Any) -> None:
        urls = {name: spelled_out(options[name]) for name in ("source", "target")}
        if urls["source"] == urls["target"]:
            raise CommandError("Both are the same database.")
        source, target = (connected(name, url) for name, url in urls.items())
        try:
            for alias in (source, target):
                self.stdout.write(f"Bringing the tables of the {alias} up to date…")
                call_command("migrate", database=alias, interactive=False, verbosity=0)
            with Bar() as bar:
                count = Move(source, target, bar.show).run()
        except CannotMove as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(f"A database does not do its part: {str(error).strip()}") from error
        finally:
            for alias in (source, target):
                connections[alias].close()
        self.stdout.write(
            f"{count} rows are in the target, and the same as in the source. "
            "Start the site with DATABASE_URL naming it."
        )


class Bar:
    """One bar for each table, as it comes."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, table: str, done: int, total: int) -> None:
        if self._bar is None or self._bar.desc != f"{table}: ":
            self.__exit__()
            self._bar = tqdm(desc=table, total=total, unit=" rows", leave=False)
        self._bar.update(done - self._bar.n)


def spelled_out(url: str) -> str:
    """What env:NAME stands for. Raises CommandError."""
    name = url.removeprefix("env:")
    if name == url:
        return url
    if name not in os.environ:
        raise CommandError(f"There is no variable {name}.")
    return os.environ[name]


def connected(alias: str, url: str) -> str:
    """A connection of this process under this name. Raises CommandError."""
    try:
        found = {**dj_database_url.parse(url)}
    except (ValueError, dj_database_url.ParseError, dj_database_url.UnknownSchemeError):
        found = {}
    if str(found.get("ENGINE", "")).rpartition(".")[2] not in ("sqlite3", "postgresql"):
        raise CommandError(f"The {alias} must be sqlite:////path or postgresql://user@host/name.")
    plain: dict[str, Any] = {
        "OPTIONS": {},
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": False,
        "TEST": {},
    }
    name = str(found.get("NAME"))
    if alias == "source" and url.startswith("sqlite") and not Path(name).is_file():
        raise CommandError(f"There is no file {name}.")
    connections.databases[alias] = {**connections.databases["default"], **plain, **found}
    connections[alias].close()
    del connections[alias]
    return alias
