"""Models people can pick, their releases, the workers that run them, and durable generations."""

import platform
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Now

from accounts.ids import uuid7
from inference.backend import Backend  # noqa: F401 - Django looks for models here
from inference.engines.base import RequestRefused, Sampling
from inference.queue import GenerationQuerySet
from inference.tokenlog import DatabaseLog

if TYPE_CHECKING:
    from inference.engines.backends import Backend as Server


class Model(models.Model):
    """A name people choose; what answers is one of its releases."""

    slug = models.SlugField(max_length=80, unique=True)
    title = models.CharField(max_length=120)
    description = models.CharField(max_length=240, blank=True)
    is_enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["slug"]

    def __str__(self) -> str:
        return self.title

    def live_release(self) -> "Release | None":
        return self.releases.filter(state=Release.State.LIVE).order_by("-version").first()


class ReleaseQuerySet(models.QuerySet["Release"]):
    def serving(self) -> "Release | None":
        """What answers people who did not choose: the newest live release of MODEL."""
        # Raw SQL because every send waits for it: see GenerationQuerySet.claim.
        live = """
            SELECT r.* FROM inference_release r JOIN inference_model m ON m.id = r.model_id
            WHERE m.slug = %s AND m.is_enabled AND r.state = 'live'
            ORDER BY r.version DESC LIMIT 1
        """
        return next(iter(self.raw(live, [settings.MODEL])), None)


class Release(models.Model):
    """An immutable build of a model: these weights, this engine, these defaults."""

    class State(models.TextChoices):
        CANDIDATE = "candidate"
        LIVE = "live"
        RETIRED = "retired"

    class CannotContinue(models.TextChoices):
        RESTART = "restart", "Begin the answer anew"
        INTERRUPT = "interrupt", "Keep what there is and offer to continue"

    model = models.ForeignKey(Model, on_delete=models.PROTECT, related_name="releases")
    version = models.PositiveIntegerField()
    engine = models.CharField(max_length=40, help_text="llama_cpp, upstream, simulated")
    weights_file = models.CharField(max_length=255, blank=True, help_text="Relative to MODELS_DIR")
    weights_sha256 = models.CharField(max_length=64, blank=True)
    weights_bytes = models.PositiveBigIntegerField(default=0)
    context_tokens = models.PositiveIntegerField()
    parameters = models.JSONField(default=dict, blank=True, help_text="Sampling defaults")
    price_input = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    price_cached = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    price_output = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    cannot_continue = models.CharField(
        max_length=10,
        choices=CannotContinue,
        default=CannotContinue.INTERRUPT,
        help_text="When a server breaks off that cannot go on with an answer it has begun",
    )
    state = models.CharField(max_length=10, choices=State, default=State.CANDIDATE)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ReleaseQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["model", "version"], name="one_release_per_version"),
        ]

    def __str__(self) -> str:
        return f"{self.model.slug} v{self.version}"

    def sampling_for(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """These parameters over this release's defaults, with a seed drawn if none was given.

        Raises RequestRefused for an unknown name or a value out of range.
        """
        drawn = {"seed": secrets.randbits(48), "max_tokens": settings.MAX_ANSWER_TOKENS}
        resolved = {**drawn, **self.parameters, **parameters}
        Sampling.from_parameters(resolved)
        return resolved

    def servers(self) -> "list[Server]":
        """Those that run it, as the engine wants them."""
        return [backend.for_engine() for backend in self.backends.all()]

    def clean(self) -> None:
        try:
            self.sampling_for({})
        except RequestRefused as error:
            raise ValidationError({"parameters": str(error)}) from error


class WorkerQuerySet(models.QuerySet["Worker"]):
    def touch(self) -> None:
        self.update(seen_at=Now())

    def living(self) -> "WorkerQuerySet":
        """Not known to be gone, and heard of lately."""
        return self.exclude(state=Worker.State.GONE).filter(
            seen_at__gt=Now() - timedelta(seconds=15)
        )


class Worker(models.Model):
    """A process that runs generations; one row per start, known by its boot id."""

    class State(models.TextChoices):
        LOADING = "loading"
        READY = "ready"
        DRAINING = "draining"
        GONE = "gone"

    boot_id = models.UUIDField(primary_key=True)
    node = models.CharField(max_length=80)
    pid = models.PositiveIntegerField()
    release = models.ForeignKey(Release, on_delete=models.CASCADE, related_name="workers")
    state = models.CharField(max_length=10, choices=State, default=State.LOADING)
    percent_loaded = models.PositiveSmallIntegerField(default=0)
    slots = models.PositiveSmallIntegerField(default=1)
    engine_build = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())

    objects = WorkerQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.node} ({self.state})"

    @staticmethod
    def this_node() -> str:
        """This installation on this machine: its host name and data folder."""
        return f"{platform.node()}:{settings.DATA_DIR}"[-80:]


class Generation(models.Model):
    """One durable run of a release over a frozen prompt.

    The log of what it produced is in Chunk; this row is the log's head (`log_seq`,
    `log_characters`), its lock (`fence`) and, once ended, its result and its bill.
    """

    class Status(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        STOPPED = "stopped"
        FAILED = "failed"
        INTERRUPTED = "interrupted"

    class Purpose(models.TextChoices):
        CHAT = "chat"
        TITLE = "title"
        API = "api"

    ACTIVE = (Status.QUEUED, Status.RUNNING)
    MAX_FRUITLESS_ATTEMPTS = 3

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="generations"
    )
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="generations")
    purpose = models.CharField(max_length=10, choices=Purpose, default=Purpose.CHAT)
    branch = models.CharField(max_length=64, blank=True, help_text="At most one active run each")
    priority = models.PositiveSmallIntegerField(default=10)
    status = models.CharField(max_length=12, choices=Status, default=Status.QUEUED)
    cancelled_at = models.DateTimeField(null=True, blank=True)

    # The lock: raised by every claim, checked by every write.
    fence = models.PositiveIntegerField(default=0)
    epoch = models.PositiveIntegerField(default=0)
    boot_id = models.UUIDField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveIntegerField(default=0)
    fruitless_attempts = models.PositiveIntegerField(
        default=0, help_text="Claims in a row that added nothing to the log"
    )

    # The head of the log.
    log_seq = models.PositiveIntegerField(default=0)
    log_characters = models.PositiveIntegerField(default=0)

    # Results, written once, in the transaction of the terminal event.
    text = models.TextField(blank=True)
    token_ids = models.BinaryField(blank=True, default=b"")
    # What the engine says of a run that is done (end, stop, length, context), else the status.
    finish_reason = models.CharField(max_length=20, blank=True)
    error = models.CharField(max_length=300, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    inherited_tokens = models.PositiveIntegerField(
        default=0, help_text="Tokens of the answer this run lengthens; billed there"
    )
    cost_micros = models.BigIntegerField(default=0, help_text="Millionths of the currency")

    queued_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    first_token_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = GenerationQuerySet.as_manager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["branch"],
                condition=models.Q(status__in=["queued", "running"]) & ~models.Q(branch=""),
                name="one_active_run_per_branch",
            ),
        ]
        indexes: ClassVar = [
            # Not partial ones: SQLite cannot use those for a status that is a parameter.
            models.Index(
                fields=["release", "status", "priority", "queued_at"], name="generation_queue"
            ),
            models.Index(fields=["status", "lease_until"], name="generation_leases"),
            models.Index(fields=["user", "-queued_at"], name="generation_of_user"),
            models.Index(fields=["finished_at"], name="generation_finished"),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} {self.id} ({self.status})"

    @property
    def log(self) -> DatabaseLog:
        return DatabaseLog(self.pk)

    @property
    def is_active(self) -> bool:
        return self.status in self.ACTIVE

    @property
    def ended_early(self) -> bool:
        """Whether it ended before the model was done, with room for more."""
        return not self.is_active and self.finish_reason not in ("end", "context")

    @property
    def can_continue(self) -> bool:
        return self.ended_early and bool(self.text)

    @property
    def queue_wait(self) -> timedelta | None:
        return self.started_at - self.queued_at if self.started_at else None

    @property
    def time_to_first_token(self) -> timedelta | None:
        return self.first_token_at - self.queued_at if self.first_token_at else None

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed after the first token; None for fewer than two tokens."""
        if not (self.first_token_at and self.finished_at) or self.completion_tokens < 2:
            return None
        seconds = (self.finished_at - self.first_token_at).total_seconds()
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None

    def cancel(self) -> Self:
        """Ask for this run to stop, durably; ends it here and now if no worker has it yet."""
        type(self).objects.filter(pk=self.pk).cancel()
        self.refresh_from_db()
        return self


class Prompt(models.Model):
    """What a generation was asked, frozen; apart from its row, which every append rewrites."""

    generation = models.OneToOneField(Generation, on_delete=models.CASCADE, primary_key=True)
    messages = models.JSONField(help_text='[{"role": "user", "content": "…"}, …]')
    parameters = models.JSONField(default=dict, help_text="Sampling, resolved: seed included")
    left_out_before = models.PositiveIntegerField(
        default=0, help_text="Messages not even considered, too old for any context window"
    )
    left_out = models.PositiveIntegerField(default=0, help_text="Messages that did not fit")
    cut_characters = models.PositiveIntegerField(
        default=0, help_text="Of the newest message, when it alone did not fit"
    )
    evaluation = models.JSONField(
        null=True, blank=True, help_text="How the prompt was evaluated; a takeover repeats it"
    )

    def __str__(self) -> str:
        return f"prompt of {self.generation_id}"


class Chunk(models.Model):
    """One event of a generation's log: dense `seq`, one writer, one terminal event."""

    class Kind(models.TextChoices):
        DELTA = "delta"
        DONE = "done"
        STOPPED = "stopped"
        FAILED = "failed"
        INTERRUPTED = "interrupted"

    generation = models.ForeignKey(Generation, on_delete=models.CASCADE, related_name="chunks")
    epoch = models.PositiveIntegerField(default=0)
    seq = models.PositiveIntegerField()
    fence = models.PositiveIntegerField(help_text="Of the claim that wrote it")
    kind = models.CharField(max_length=12, choices=Kind, default=Kind.DELTA)
    offset = models.PositiveIntegerField(help_text="Characters before this event")
    text = models.TextField(blank=True)
    token_ids = models.BinaryField(default=b"")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["generation", "epoch", "seq"], name="dense_log_positions"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.generation_id} {self.epoch}/{self.seq} {self.kind}"
