"""The part of a worker process that takes messages from Celery, in a thread of its own."""

import logging
import threading
from collections.abc import Sequence

from celery import current_app
from celery.worker import WorkController

log = logging.getLogger(__name__)
AGAIN_SECONDS = 1.0


class Consumer:
    """Takes messages from these queues, two at a time, until it is told to stop.

    Celery's own worker, without its handling of signals: the process has a run to drain first.
    """

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = list(queues)
        self._worker: WorkController | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="celery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        if self._worker is not None:
            self._worker.stop()

    def _run(self) -> None:
        """Again and again: Celery's worker ends when something goes wrong in it."""
        while not self._is_over.wait(AGAIN_SECONDS if self._worker else 0):
            self._take()

    def _take(self) -> None:
        try:
            # Made here too: it closes this thread's connection to the database.
            self._worker = WorkController(
                app=current_app._get_current_object(),
                queues=self._queues,
                pool="threads",
                concurrency=2,
                loglevel="WARNING",
                without_gossip=True,
                without_mingle=True,
                without_heartbeat=True,
            )
            self._worker.start()
        except Exception:
            # The worker goes on: it also looks at the table by itself.
            log.exception("Messages from Celery could not be taken; trying again.")
