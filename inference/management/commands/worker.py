"""manage.py worker: run generations of one release until told to stop."""

import os
from typing import Any
from uuid import UUID, uuid4

import uvloop
from django.core.management.base import BaseCommand, CommandError

from inference.engines.base import EngineError
from inference.models import Release
from inference.worker import WorkerProcess

EXIT_UNUSABLE = 78  # the model cannot be loaded: starting again would not help


class Command(BaseCommand):
    help = "Runs generations of the default model's live release until it gets SIGTERM."

    def handle(self, *args: Any, **options: Any) -> None:
        release = Release.objects.serving()
        if release is None:
            raise CommandError("There is no model yet. Run: manage.py models pull")
        boot_id = UUID(os.environ.get("CHATSITE_BOOT_ID") or str(uuid4()))
        try:
            uvloop.run(self._run(release, boot_id))
        except EngineError as error:
            raise CommandError(str(error), returncode=EXIT_UNUSABLE) from error

    async def _run(self, release: Release, boot_id: UUID) -> None:
        await WorkerProcess(release, boot_id).run()
