"""manage.py serve: the whole site on this machine, web and worker."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from chatsite.supervisor import CannotServe, Supervisor, address_to_show, check_port, take_lock
from inference.catalogue import CATALOGUE, register
from inference.management.commands.worker import served_release
from inference.models import Release

NOT_HERE = "The model is not here yet. Run: ./manage.py models pull {}"


class Command(BaseCommand):
    help = "Serves the site and runs the model, as two supervised processes. Ctrl-C ends both."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            lock = take_lock()
            check_port()
            check_database()
            check_model()
            connection.close()
            self._say(f"Chatsite is starting at {address_to_show()} (Ctrl-C stops it)")
            Supervisor(lock, on_ready=lambda: self._say("Ready.")).run()
        except CannotServe as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            where = error.filename or settings.DATA_DIR
            raise CommandError(
                f"{where}: {error.strerror}. Make room or mend the rights."
            ) from error
        self.stdout.write("Stopped. Answers under way go on after the next start.")

    def _say(self, sentence: str) -> None:
        self.stdout.write(sentence)
        self.stdout.flush()


def check_database() -> None:
    try:
        executor = MigrationExecutor(connection)
        waiting = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as error:
        raise CannotServe(f"The database cannot be used: {error}") from error
    if waiting:
        raise CannotServe("The database is not up to date. Run: ./manage.py migrate")


def check_model() -> None:
    """What people get is registered, and its file is where it should be."""
    if Release.objects.serving() is None and (entry := CATALOGUE.get(settings.MODEL)):
        if entry.file_name and not (settings.MODELS_DIR / entry.file_name).is_file():
            raise CannotServe(NOT_HERE.format(settings.MODEL))
        register(entry)
    try:
        release = served_release()
    except CommandError as error:
        raise CannotServe(str(error)) from error
    if release.weights_file and not release.weights_path.is_file():
        raise CannotServe(NOT_HERE.format(release.model.slug))
