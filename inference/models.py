"""The workers that run releases, and durable generations; releases have a module of their own."""

import os
import platform
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, ClassVar, Self
from uuid import UUID

from django.conf import settings
from django.db import models
from django.db.models.functions import Now
from django.utils.functional import cached_property

from accounts.ids import uuid7
from inference.aliases import Alias, AliasArm
from inference.audit import ReleaseEvent
from inference.backend import Backend
from inference.context import Fitted
from inference.engines.base import Request, Sampling, Turn
from inference.file_jobs import FileJob
from inference.live_log import LiveLog
from inference.queue import GenerationQuerySet
from inference.releases import Model, Release
from inference.tokenlog import DatabaseLog
from inference.usage import DailyUsage

__all__ = [
    "Alias",
    "AliasArm",
    "Backend",
    "Chunk",
    "DailyUsage",
    "FileJob",
    "Generation",
    "Model",
    "Prompt",
    "Release",
    "ReleaseEvent",
    "Worker",
]


KEPT_WORKERS = timedelta(days=3)


class WorkerQuerySet(models.QuerySet["Worker"]):
    def touch(self) -> None:
        self.update(seen_at=Now())

    def forget_old(self) -> None:
        """Rows of processes that ended days ago: every start adds one."""
        self.filter(state=Worker.State.GONE, seen_at__lt=Now() - KEPT_WORKERS).delete()

    def bury(self, boot_id: UUID) -> None:
        """It is known to be dead: others go on with its answers at once."""
        self.filter(boot_id=boot_id).update(state=Worker.State.GONE)
        Generation.objects.void_leases(boot_id)

    def bury_predecessors(self) -> None:
        """Whoever had this process's number on this node is dead, since this one has it now.

        In a container each start has the same: nobody waits for leases after a crash there.
        """
        here = self.filter(node=Worker.this_node(), pid=os.getpid())
        for worker in here.exclude(state=Worker.State.GONE):
            self.bury(worker.boot_id)

    def living(self) -> "WorkerQuerySet":
        """Not known to be gone, and heard of lately."""
        return self.exclude(state=Worker.State.GONE).filter(
            seen_at__gt=Now() - timedelta(seconds=15)
        )

    def slots_of(self, release_id: int) -> int:
        """Runs that its living workers have room for, together."""
        ready = self.living().filter(release=release_id, state=Worker.State.READY)
        return int(ready.aggregate(slots=models.Sum("slots"))["slots"] or 0)


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
    engine_build = models.CharField(max_length=400, blank=True)
    load_seconds = models.FloatField(null=True, blank=True, help_text="Until it was ready")
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
    UNSUSPECTED_ATTEMPTS = 2  # of either kind; after so many, a run is tried alone

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="generations"
    )
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="generations")
    arm = models.CharField(
        max_length=200, blank=True, help_text="How this release was chosen: alias/model version"
    )
    purpose = models.CharField(max_length=10, choices=Purpose, default=Purpose.CHAT)
    branch = models.CharField(max_length=64, blank=True, help_text="At most one active run each")
    priority = models.PositiveSmallIntegerField(default=10)
    turn = models.FloatField(default=0.0, help_text="In the fair queue; lower is served first")
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
    shared_attempts = models.PositiveIntegerField(
        default=0, help_text="The same beside other runs, one of which may have been to blame"
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
    engine_build = models.CharField(
        max_length=400, blank=True, help_text="Of the worker that held it last"
    )
    prompt_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    inherited_tokens = models.PositiveIntegerField(
        default=0, help_text="Tokens of the answer this run lengthens; billed there"
    )
    summary_prompt_tokens = models.PositiveIntegerField(
        default=0, help_text="Read for the summary of what did not fit; not in the prompt’s"
    )
    summary_tokens = models.PositiveIntegerField(
        default=0, help_text="Written for that summary; not in the answer’s"
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
                fields=["release", "status", "priority", "turn", "queued_at", "id"],
                name="generation_turns",
            ),
            models.Index(fields=["user", "status"], name="generation_active_of_user"),
            models.Index(fields=["status", "lease_until"], name="generation_leases"),
            models.Index(fields=["user", "-queued_at"], name="generation_of_user"),
            models.Index(fields=["finished_at"], name="generation_finished"),
        ]

    def __str__(self) -> str:
        return f"{self.purpose} {self.id} ({self.status})"

    @cached_property
    def log(self) -> DatabaseLog:
        """In Redis too where there is one: then it remembers what its writer has not saved."""
        return LiveLog(self.pk) if settings.REDIS_URL else DatabaseLog(self.pk)

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
    summary = models.TextField(
        blank=True, help_text="The message that stands for those that did not fit"
    )
    common = models.PositiveSmallIntegerField(
        default=0, help_text="Messages at the beginning that are the same for everybody"
    )
    tokens = models.PositiveIntegerField(default=0, help_text="Of the prompt as evaluated")
    sha256 = models.CharField(
        max_length=64, blank=True, help_text="Of these tokens; a takeover must find the same"
    )

    def __str__(self) -> str:
        return f"prompt of {self.generation_id}"

    @property
    def turns(self) -> list[Turn]:
        return [Turn(message["role"], message["content"]) for message in self.messages]

    @property
    def left_out_in_all(self) -> int:
        return self.left_out_before + self.left_out

    @property
    def unusual_parameters(self) -> dict[str, Any]:
        """Those that are not what they are when nobody names them; the seed always is another."""
        usual = {**asdict(Sampling()), "max_tokens": settings.MAX_ANSWER_TOKENS}
        chosen = {name: each for name, each in self.parameters.items() if name != "seed"}
        return {name: each for name, each in chosen.items() if each != usual.get(name)}

    @property
    def sampling(self) -> Sampling:
        """Raises RequestRefused for parameters that are not known any more."""
        return Sampling.from_parameters(self.parameters)

    def request(self, fitted: Fitted, **fields: Any) -> Request:
        """For an engine: the whole answer, with what this run inherited of it."""
        sampling = self.sampling
        longest = sampling.max_tokens + self.generation.inherited_tokens
        common = 0 if fitted.left_out else self.common
        sampling = replace(sampling, max_tokens=longest)
        return Request(fitted.turns, sampling, common=common, **fields)


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
    finish = models.CharField(
        max_length=20, blank=True, default="", db_default="",
        help_text="Why the answer's text ends with this event, if it does",
    )  # fmt: skip

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["generation", "epoch", "seq"], name="dense_log_positions"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.generation_id} {self.epoch}/{self.seq} {self.kind}"
