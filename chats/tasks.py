"""What Celery calls once an hour."""

from celery import shared_task

from chats.purge import keep_house


@shared_task(name="chats.tasks.purge")  # type: ignore[untyped-decorator]
def purge() -> None:
    keep_house()
