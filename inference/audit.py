"""Who did what to which release."""

import getpass
from typing import TYPE_CHECKING, Any, TypeAlias

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

if TYPE_CHECKING:
    from accounts.models import User
    from inference.releases import Release

By: TypeAlias = "User | str"
"""Who does something to a release: a person, or the name of a command."""


class ReleaseEvent(models.Model):
    """The audit trail: one line for each thing done to a release, never changed."""

    class Action(models.TextChoices):
        ADD = "add"
        PROMOTE = "promote"
        ROLL_BACK = "roll back"
        RETIRE = "retire"
        WARM = "warm"
        VERIFY = "verify"
        SERVER = "server", "server connected or changed"
        BREAK = "break", "could not be loaded"
        BUILD = "build", "loaded by another build of the engine"

    release = models.ForeignKey(
        "inference.Release", on_delete=models.CASCADE, related_name="events"
    )
    action = models.CharField(max_length=10, choices=Action)
    from_state = models.CharField(max_length=10, blank=True)
    replaced = models.ForeignKey(
        "inference.Release", null=True, blank=True, on_delete=models.SET_NULL, related_name="+",
        help_text="What was live before",
    )  # fmt: skip
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    by = models.CharField(max_length=120, blank=True, help_text="A name, or a command")
    note = models.CharField(max_length=300, blank=True)
    at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.action} {self.release_id}"

    @classmethod
    def record(cls, release: "Release", action: str, by: By, **facts: Any) -> None:
        who = f"{by} ({_login()})" if isinstance(by, str) else by.get_username()
        user = None if isinstance(by, str) else by
        cls.objects.create(release=release, action=action, by=who, user=user, **facts)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
