"""manage.py worker: run generations of one release until told to stop."""

import os
from typing import Any
from uuid import UUID, uuid4

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from inference.engines.base import EngineError
from inference.models import Release
from inference.worker import WorkerProcess

EXIT_UNUSABLE = 78  # the model cannot be loaded: starting again would not help


def served_release() -> Release:
    """What people get. Raises CommandError with what to do when there is nothing."""
    models = "./manage.py models"
    try:
        release = Release.objects.serving()
        is_retired = Release.objects.filter(model__slug=settings.MODEL).exists()
    except DatabaseError as error:
        raise CommandError("The database has no tables yet. Start the site: make run") from error
    if release is None and is_retired:
        raise CommandError(f"Every release is retired. Run: {models} promote {settings.MODEL}")
    if release is None:
        raise CommandError(f"There is no model yet. Run: {models} pull {settings.MODEL}")
    return release


class Command(BaseCommand):
    help = "Runs generations of the default model's live release until it gets SIGTERM."

    def handle(self, *args: Any, **options: Any) -> None:
        release = served_release()
        boot_id = UUID(os.environ.get("CHATSITE_BOOT_ID") or str(uuid4()))
        try:
            uvloop.run(WorkerProcess(release, boot_id).run())
        except EngineError as error:
            raise CommandError(str(error), returncode=EXIT_UNUSABLE) from error
