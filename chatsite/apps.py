from django.apps import AppConfig
from django.conf import settings


class ChatsiteConfig(AppConfig):
    """The composition root as an app of its own: its checks and its commands."""

    name = "chatsite"

    def ready(self) -> None:
        from chatsite import checks  # noqa: F401 - importing registers them

        if settings.REDIS_URL:
            from chatsite import celery  # noqa: F401 - it becomes the current one
