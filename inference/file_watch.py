"""A worker's part in model file jobs: it starts the process that does them (`file_work.py`)."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError

from inference.database import in_database
from inference.models import FileJob

LOOK_SECONDS = 2.0
COMMAND = (sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "models", "work")


async def watch() -> None:
    """Start it whenever a job is due, until cancelled. It ends when we do."""
    reader, writer = os.pipe()
    try:
        while True:
            with contextlib.suppress(DatabaseError):  # looked at again in a moment
                if await in_database(FileJob.objects.is_due):
                    await _work(reader)
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        os.close(reader)
        os.close(writer)


async def _work(lifeline: int) -> None:
    environment = {**os.environ, "CHATSITE_LIFELINE": str(lifeline), "CHATSITE_ROLE": ""}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env=environment, pass_fds=(lifeline,), start_new_session=True
    )
    await process.wait()
