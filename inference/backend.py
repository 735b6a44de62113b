"""Where the servers of a release are. What is done with them is in engines/backends.py.

That is imported late: it brings the HTTP client, which the web process has no use for.
"""

import os
from typing import TYPE_CHECKING, ClassVar, cast

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator, RegexValidator
from django.db import models

from inference.engines.base import EngineError

if TYPE_CHECKING:
    from inference.engines import backends


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
        validators=[RegexValidator(r"^[A-Za-z_][A-Za-z0-9_]*$")],
        help_text="Name of the environment variable of the workers that holds its key",
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

    def for_engine(self) -> "backends.Backend":
        """As the engine wants it, with the key out of the environment."""
        from inference.engines import backends

        return backends.Backend(
            name=self.name,
            url=self.url,
            kind=cast("backends.Kind", self.kind),
            key=os.environ.get(self.api_key_env, "") if self.api_key_env else "",
            model=self.served_model,
            slots=self.slots,
            draining=self.is_draining,
        )
