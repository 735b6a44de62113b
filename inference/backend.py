"""Where the servers of a release are. What is done with them is in engines/backends.py.

That is imported late: it brings the HTTP client, which the web process has no use for.
"""

import os
from typing import TYPE_CHECKING, ClassVar, cast

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models

from inference.audit import ReleaseEvent
from inference.engines.base import EngineError

if TYPE_CHECKING:
    from inference.audit import By
    from inference.engines import backends


# Nothing else of the environment may leave the site, whoever may edit a server's row.
KEY_PREFIX = "BACKEND_KEY_"


class Backend(models.Model):
    """A server that runs a release of the engine `upstream`; all of one release are of one kind."""

    class Kind(models.TextChoices):
        LLAMA_SERVER = "llama_server", "llama-server"
        VLLM = "vllm", "vLLM"
        OPENAI = "openai", "Another with OpenAI’s API"

    release = models.ForeignKey(
        "inference.Release", on_delete=models.CASCADE, related_name="backends"
    )
    name = models.SlugField(max_length=40)
    url = models.CharField(max_length=300, help_text="http://host:port, without /v1")
    kind = models.CharField(max_length=12, choices=Kind)
    served_model = models.CharField(
        max_length=200, blank=True, help_text="The server’s name for the model; blank: its first"
    )
    slots = models.PositiveSmallIntegerField(
        default=8, validators=[MinValueValidator(1)], help_text="Answers it writes at once"
    )
    api_key_env = models.CharField(
        max_length=100,
        blank=True,
        validators=[
            RegexValidator(
                rf"^{KEY_PREFIX}[A-Za-z0-9_]+$",
                f"Only a variable whose name begins with {KEY_PREFIX} is sent to a server.",
            )
        ],
        help_text=f"The workers’ environment variable with its key, {KEY_PREFIX}…",
    )
    trouble = models.CharField(
        max_length=300, blank=True, editable=False, help_text="Why a worker could not use it"
    )
    is_draining = models.BooleanField(default=False, help_text="Gets no new answers")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["release", "name"], name="one_backend_per_name"),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        from inference.engines.outbound import check_address

        try:
            check_address(self.url)
        except EngineError as error:
            raise ValidationError({"url": str(error)}) from error
        others = Backend.objects.filter(release=self.release_id).exclude(pk=self.pk)
        if others.exclude(kind=self.kind).exists():
            raise ValidationError({"kind": "The release’s other servers are of another kind."})

    def drain(self, is_draining: bool, by: "By") -> None:
        """Give it no new answers, or some again."""
        self.is_draining = is_draining
        self.save(update_fields=["is_draining"])
        self.note("drains" if is_draining else "is taken back", by)

    def note(self, what: str, by: "By") -> None:
        """In the audit trail: what was done to it."""
        note = f"{self.name} {what}"
        self.release.note(ReleaseEvent.Action.SERVER, by, from_state=self.release.state, note=note)

    def for_engine(self) -> "backends.Backend":
        """As the engine wants it, with the key out of the environment."""
        from inference.engines import backends

        return backends.Backend(
            name=self.name,
            url=self.url,
            kind=cast("backends.Kind", self.kind),
            key=self._key(),
            model=self.served_model,
            slots=self.slots,
            draining=self.is_draining,
        )

    def _key(self) -> str:
        is_meant = self.api_key_env.startswith(KEY_PREFIX)
        return os.environ.get(self.api_key_env, "") if is_meant else ""
