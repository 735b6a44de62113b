"""People, guests among them, and the tier that says what each may use."""

import secrets
from typing import ClassVar, Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser, UserManager
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Upper


class Tier(models.Model):
    """What a group of people may use. Limits of 0 mean no limit."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=60)
    priority = models.PositiveSmallIntegerField(default=10, help_text="Lower is served first.")
    weight = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1)],
        help_text="Its people's share of a busy model, beside others of the same priority.",
    )
    requests_per_minute = models.PositiveIntegerField(default=0)
    tokens_per_minute = models.PositiveIntegerField(default=0)
    concurrent_runs = models.PositiveSmallIntegerField(
        default=0, help_text="Answers of one person, waiting or being written."
    )
    context_tokens = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["priority", "slug"]

    def __str__(self) -> str:
        return self.name


class Users(UserManager["User"]):
    def get_by_natural_key(self, username: str | None) -> "User":
        """The person of this name, or else the only one whose name has it in other letters.

        Raises User.DoesNotExist.
        """
        try:
            return self.get(username=username)
        except self.model.DoesNotExist:
            alike = self.filter(username__iexact=username, is_guest=False)[:2]
            if len(alike) != 1:
                raise
            return alike[0]

    def create_guest(self, username: str = "", origin: str = "") -> "User":
        """A person without an account, known only by their session."""
        name = username or f"guest-{secrets.token_hex(16)}"
        guest = self.model(username=name, is_guest=True, origin=origin)
        guest.set_unusable_password()
        guest.save(using=self._db)
        return guest


class User(AbstractUser):
    is_guest = models.BooleanField(default=False)
    origin = models.CharField(
        max_length=32,
        blank=True,
        db_default="",
        editable=False,
        help_text="Of guests: the same for all of one address, which it does not tell",
    )
    tier = models.ForeignKey(Tier, null=True, blank=True, on_delete=models.SET_NULL)

    objects: ClassVar[Users] = Users()

    class Meta(AbstractUser.Meta):
        indexes: ClassVar = [
            models.Index(Upper("username"), name="user_any_case", condition=Q(is_guest=False))
        ]

    @property
    def priority(self) -> int:
        """The place of this person's runs in the queue; lower is served first."""
        return self.tier.priority if self.tier else 10

    @property
    def weight(self) -> int:
        """How many turns of others one of this person's is worth."""
        return max(1, self.tier.weight) if self.tier else 1

    @property
    def concurrent_runs(self) -> int:
        """How many answers may wait or be written for this person at once; 0: no limit."""
        return self.tier.concurrent_runs if self.tier else int(settings.MAX_RUNS_EACH)

    def lock(self) -> None:
        """Wait for what else is being sent in this person's name; ends with the transaction."""
        list(User.objects.select_for_update(no_key=True).filter(pk=self.pk).values_list("pk"))

    def become_member(self, username: str, password: str) -> Self:
        """Turn this guest into an account in place, so that every chat stays theirs."""
        self.username = username
        self.is_guest, self.origin = False, ""
        self.set_password(password)
        self.save()
        return self


class Count(models.Model):
    """What a limit has counted while Redis is away (accounts/counts.py)."""

    key = models.CharField(max_length=255, primary_key=True)
    value = models.BigIntegerField()
    expires_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.key
