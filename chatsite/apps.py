from django.apps import AppConfig


class ChatsiteConfig(AppConfig):
    """The composition root as an app of its own: its checks and its commands."""

    name = "chatsite"

    def ready(self) -> None:
        from chatsite import checks  # noqa: F401 - importing registers them
