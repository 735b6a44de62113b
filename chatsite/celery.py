"""The Celery of a site with REDIS_URL: wake-ups and chores. It never has the only copy of a job.

Losing every message costs two seconds (workers look at the table), not an answer.
"""

import os
import ssl

from celery import Celery
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")

ANSWER_SECONDS = 1.0  # a send must not wait for a broker that is away


def broker() -> str:
    """The same Redis, as Celery spells it."""
    url = str(settings.REDIS_URL)
    return url.replace("unix://", "redis+socket://", 1) if url else "memory://"


app = Celery("chatsite", broker=broker())
app.set_default()  # in every thread
if broker().startswith("rediss"):
    # Celery's own default does not look at the certificate.
    app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
app.conf.update(
    include=["inference.tasks", "chats.tasks"],
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    task_acks_late=False,
    task_default_queue=f"{settings.REDIS_PREFIX}.chores",
    task_create_missing_queues=True,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "global_keyprefix": f"{settings.REDIS_PREFIX}:celery:",
        "socket_connect_timeout": ANSWER_SECONDS,
        "socket_timeout": 3 * ANSWER_SECONDS,  # more than the second for which a consumer asks
        "socket_keepalive": True,
        "health_check_interval": 10,
        "max_retries": 0,  # of a send; whoever consumes connects anew by itself
    },
    beat_schedule={
        "look after runs": {
            "task": "inference.tasks.look_after_runs",
            "schedule": 5.0,
            "options": {"expires": 5.0},
        },
        "purge": {"task": "chats.tasks.purge", "schedule": 3600.0, "options": {"expires": 3600.0}},
    },
    beat_schedule_filename=str(settings.DATA_DIR / "beat"),
)
