"""A worker's part in model file jobs: it starts the process that does them (`file_work.py`)."""

import asyncio
import logging
import os
import sys
from pathlib import Path

from django.conf import settings
from django.db import Error as DatabaseError

from inference.database import in_database, log_failure
from inference.models import FileJob

log = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
AFTER_FAILURE_SECONDS = 30.0
COMMAND = (sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "models", "work")


async def watch() -> None:
    """Start it whenever a job is due, until cancelled. It ends when we do."""
    reader, writer = os.pipe()
    try:
        while True:
            pause = LOOK_SECONDS
            try:
                if await in_database(FileJob.objects.is_mine_to_start):
                    pause = await _work(reader)
            except (DatabaseError, OSError):
                log_failure(log, "Model file jobs could not be looked after; trying again.")
            await asyncio.sleep(pause)
    finally:
        os.close(reader)
        os.close(writer)


async def _work(lifeline: int) -> float:
    """Until its end; returns the seconds to wait before another."""
    # No role: it is a command of a moment, with no part in the arithmetic of connections.
    environment = {**os.environ, "CHATSITE_LIFELINE": str(lifeline), "CHATSITE_ROLE": ""}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env=environment, pass_fds=(lifeline,), start_new_session=True
    )
    if code := await process.wait():
        log.warning("The process of model file jobs ended with %d.", code)
    return AFTER_FAILURE_SECONDS if code else LOOK_SECONDS
