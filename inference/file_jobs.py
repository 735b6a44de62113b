"""Pulls and verifications of model files that staff ask for; `file_work.py` does them."""

from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from inference.audit import ReleaseEvent
from inference.catalogue import CATALOGUE
from inference.releases import Model, Release, ReleaseError
from inference.sources import SHA256, SLUG, ModelFileError, file_name, parse_outside

if TYPE_CHECKING:
    from accounts.models import User

LEASE = timedelta(seconds=30)
STARTING = timedelta(seconds=10)
MOST_LOST = 3
MOST_WAITING = 20  # of one person's


class NotOurs(Exception):
    """Somebody cancelled the job, or another process has taken it over."""


class FileJobQuerySet(models.QuerySet["FileJob"]):
    def active(self) -> "FileJobQuerySet":
        return self.filter(state__in=(FileJob.State.WAITING, FileJob.State.RUNNING))

    def free(self) -> "FileJobQuerySet":
        """Those that nobody works on: new ones, and those whose process is gone."""
        lost = Q(state=FileJob.State.RUNNING, lease_until__lt=Now())
        return self.filter(Q(state=FileJob.State.WAITING) | lost)

    def is_busy(self) -> bool:
        return self.filter(state=FileJob.State.RUNNING, lease_until__gte=Now()).exists()

    def is_due(self) -> bool:
        """Whether `claim` would give one."""
        return self.free().exists() and not self.is_busy()

    def is_mine_to_start(self) -> bool:
        """`is_due`, told to one of all who ask, and again when nothing has come of that."""
        if not self.is_due():
            return False
        first = self.free().order_by("pk").values_list("pk", flat=True)[:1]
        quiet = Q(called_at=None) | Q(called_at__lt=Now() - STARTING)
        return bool(self.filter(quiet, pk__in=list(first)).update(called_at=Now()))

    def claim(self, but: Collection[int] = ()) -> "FileJob | None":
        """The oldest that is free, for this process alone; none while another is worked on."""
        with transaction.atomic():
            free = list(self.free().exclude(pk__in=but).select_for_update().order_by("pk"))
            for job in () if self.is_busy() else free:
                if job.take():
                    return job
        return None


class FileJob(models.Model):
    """A pull or a verification of a model file. It is its own audit trail: nobody changes it."""

    class Kind(models.TextChoices):
        PULL = "pull"
        VERIFY = "verify"

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    kind = models.CharField(max_length=10, choices=Kind, default=Kind.PULL)
    source = models.CharField(max_length=500, blank=True)
    name = models.CharField(max_length=80, blank=True)
    title = models.CharField(max_length=120, blank=True)
    sha256 = models.CharField("SHA-256", max_length=64, blank=True)
    context_tokens = models.PositiveIntegerField(null=True, blank=True)
    release = models.ForeignKey(
        Release, null=True, blank=True, on_delete=models.SET_NULL, related_name="file_jobs"
    )
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    step = models.CharField(max_length=40, blank=True)
    done_bytes = models.PositiveBigIntegerField(default=0)
    total_bytes = models.PositiveBigIntegerField(default=0, help_text="0: not known yet")
    outcome = models.CharField(max_length=500, blank=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    by = models.CharField(max_length=150, help_text="Who asked for it")
    node = models.CharField(max_length=200, blank=True, help_text="The machine that does it")
    asked_at = models.DateTimeField(db_default=Now())
    cancelled_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    called_at = models.DateTimeField(
        null=True, blank=True, help_text="When a process was started for it"
    )
    lease_until = models.DateTimeField(null=True, blank=True)
    fence = models.PositiveIntegerField(default=0, help_text="How often a process has taken it")
    lost = models.PositiveIntegerField(default=0, help_text="How often that process was lost")

    objects = FileJobQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-pk"]
        verbose_name = "model file job"

    def __str__(self) -> str:
        return f"{self.kind} {self.told_source or self.release}"[:120]

    @property
    def is_active(self) -> bool:
        return self.state in (self.State.WAITING, self.State.RUNNING)

    @classmethod
    def verify(cls, release: Release, by: "User") -> "FileJob":
        """Have the file of a release compared with its hash. Raises ReleaseError."""
        if not release.weights_file:
            raise ReleaseError(f"{release} has no file.")
        if cls.objects.active().filter(kind=cls.Kind.VERIFY, release=release).exists():
            raise ReleaseError(f"The file of {release} is being compared already.")
        job = cls(kind=cls.Kind.VERIFY, release=release, user=by, by=by.get_username())
        try:
            job.clean()
        except ValidationError as error:
            raise ReleaseError(" ".join(error.messages)) from error
        job.save()
        return job

    def clean(self) -> None:
        if FileJob.objects.active().filter(user=self.user).count() >= MOST_WAITING:
            raise ValidationError("Many jobs of yours are waiting. Try again when some have ended.")
        if self.kind == self.Kind.PULL and self.source not in CATALOGUE:
            self._check_order()

    def _check_order(self) -> None:
        try:
            file_name(parse_outside(self.source))
        except ModelFileError as error:
            raise ValidationError({"source": str(error)}) from error
        if self.name in CATALOGUE:
            told = f"{self.name} is a model of the list of known ones. Give another name."
            raise ValidationError({"name": told})
        if not SLUG.fullmatch(self.name):
            told = "Give the model a name of small letters, digits and dashes, such as my-model."
            raise ValidationError({"name": told})
        try:
            Model.check_name(self.name)
        except ReleaseError as error:
            raise ValidationError({"name": str(error)}) from error
        if not SHA256.fullmatch(self.sha256):
            told = "Say what the file must be: 64 hexadecimal digits, as its publisher states them."
            raise ValidationError({"sha256": told})

    def cancel(self, by: "User") -> None:
        """A running one ends within seconds; what it fetched stays for another pull."""
        mine = FileJob.objects.active().filter(pk=self.pk, cancelled_at=None)
        mine.update(cancelled_at=Now(), outcome=f"Cancelled by {by.get_username()}.")
        waiting = FileJob.objects.filter(pk=self.pk, state=self.State.WAITING)
        waiting.update(state=self.State.CANCELLED, ended_at=Now(), source=self.told_source)

    @property
    def told_source(self) -> str:
        """What stays of it: keys may be in the rest of an address."""
        return self.source.partition("?")[0]

    def may_be_done(self) -> bool:
        """Whether who asked for it is still among those who may."""
        right = "add_filejob" if self.kind == self.Kind.PULL else "change_release"
        return (
            self.user is not None
            and self.user.is_staff
            and self.user.has_perm(f"inference.{right}")
        )

    # --- for the process that does it -----------------------------------------------------
    def take(self) -> bool:
        """For this process, within `claim`; not one that nobody may or can do any more."""
        from inference.models import Worker

        if self.cancelled_at:
            self.end(self.State.CANCELLED, self.outcome)
        elif not self.may_be_done():
            self.end(self.State.FAILED, f"{self.by} may not have this done any more.")
        elif self.lost >= MOST_LOST:
            self.end(self.State.FAILED, f"Its process was lost {self.lost} times.")
        else:
            self._mine().update(
                state=self.State.RUNNING,
                fence=F("fence") + 1,
                lost=F("lost") + int(self.state == self.State.RUNNING),
                node=Worker.this_node(),
                lease_until=Now() + LEASE,
            )
            self.refresh_from_db()
        return self.state == self.State.RUNNING

    def renew(self, **fields: Any) -> None:
        """Keep it. Raises NotOurs when it is cancelled, or somebody else's."""
        mine = self._mine().filter(cancelled_at=None)
        if not mine.update(lease_until=Now() + LEASE, **fields):
            raise NotOurs

    def give_back(self) -> None:
        """The next process goes on with it, unless it is cancelled."""
        self._mine().filter(cancelled_at=None).update(state=self.State.WAITING)
        cancelled = self._mine().filter(cancelled_at__isnull=False)
        cancelled.update(state=self.State.CANCELLED, ended_at=Now(), source=self.told_source)

    def end(self, state: str, outcome: str, release: Release | None = None) -> None:
        facts = {"release": release} if release else {}
        told = {"outcome": outcome[:500], "source": self.told_source}
        self._mine().update(state=state, ended_at=Now(), **told, **facts)
        self.refresh_from_db()

    def note(self, outcome: str) -> None:
        """What a verification found, in the release's trail."""
        if self.release and Release.objects.filter(pk=self.release.pk).exists():
            facts = {"from_state": self.release.state, "note": outcome[:300]}
            self.release.note(ReleaseEvent.Action.VERIFY, self.user or self.by, **facts)

    def _mine(self) -> FileJobQuerySet:
        """This row, while it is as it was taken."""
        return FileJob.objects.active().filter(pk=self.pk, fence=self.fence)
