"""Models people can pick, their releases, and who put which release live when."""

import secrets
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from inference import router
from inference.audit import By, ReleaseEvent
from inference.engines.base import RequestRefused, Sampling
from inference.gguf import read_header
from inference.hashes import sha256_of

if TYPE_CHECKING:
    from inference.engines.backends import Backend as Server

WARM = timedelta(minutes=15)


class ReleaseError(Exception):
    """One sentence for a person: what cannot be done to this release or model, and why."""


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

    def clean(self) -> None:
        from inference.aliases import Alias

        if Alias.objects.filter(slug=self.slug).exists():
            raise ValidationError({"slug": "An alias has this name."})

    @classmethod
    def named(cls, slug: str, **defaults: str) -> "Model":
        """The model of this name, made if there is none. Raises ReleaseError for an alias's."""
        if not cls.objects.filter(slug=slug).exists():
            cls.check_name(slug, **defaults)
        return cls.objects.get_or_create(slug=slug, defaults={"title": slug, **defaults})[0]

    @classmethod
    def check_name(cls, slug: str, **defaults: str) -> None:
        """Raises ReleaseError for what cannot be a model's name, such as an alias's."""
        model = cls(slug=slug, **{"title": slug, **defaults})
        try:
            model.clean_fields()
            model.clean()
        except ValidationError as error:
            raise ReleaseError(f"{slug}: {' '.join(error.messages)}") from error

    def live_release(self) -> "Release | None":
        return self.releases.filter(state=Release.State.LIVE).first()

    def release(self, version: int | None = None) -> "Release":
        """The release of this version, or the newest. Raises ReleaseError."""
        releases = self.releases.select_related("model").order_by("-version")
        found = releases.filter(version=version) if version is not None else releases
        release = found.first()
        if release is None:
            which = f"version {version}" if version is not None else "release"
            raise ReleaseError(f"{self.slug} has no {which}. See: ./manage.py models list")
        return release

    def record(
        self, same: Mapping[str, Any], by: By, *, is_live: bool = True, **fields: Any
    ) -> "Release":
        """The release with the facts `same`, made with `fields` as well if there is none yet.

        The first release of a model goes live if it may, every other one is a candidate.
        """
        with transaction.atomic():
            self.lock()
            if known := self.releases.filter(**same).order_by("version").first():
                return known
            newest = self.releases.order_by("-version").first()
            is_live = is_live and newest is None
            release = self.releases.create(
                version=newest.version + 1 if newest else 1,
                state=Release.State.LIVE if is_live else Release.State.CANDIDATE,
                **{**(newest.prices() if newest else {}), **same, **fields},
            )
            release.note(ReleaseEvent.Action.ADD, by, from_state="")
        return release

    def add_release(
        self, path: Path, by: By, *, sha256: str = "", context_tokens: int | None = None,
        parameters: Mapping[str, Any] | None = None, is_live: bool = True,
    ) -> "Release":  # fmt: skip
        """Record a GGUF file in MODELS_DIR as a release. Raises EngineError for a broken one.

        Its hash is computed, the context is what the model was trained with and the parameters
        those of the newest release, unless given. Same file, same settings: the same release.
        """
        header = read_header(path)
        newest = self.releases.order_by("-version").first()
        defaults = newest.parameters if newest and parameters is None else dict(parameters or {})
        same = {
            "engine": "llama_cpp",
            "weights_sha256": sha256 or sha256_of(path),
            "context_tokens": context_tokens or header.context_tokens or settings.CONTEXT_TOKENS,
            "parameters": defaults,
        }
        return self.record(
            same,
            by,
            is_live=is_live,
            weights_file=str(path.relative_to(settings.MODELS_DIR)),
            weights_bytes=path.stat().st_size,
            template_sha256=header.template_sha256,
        )

    def roll_back(self, by: By) -> "Release":
        """Put live what the live release replaced; returns it. Raises ReleaseError."""
        with transaction.atomic():
            self.lock()
            live = self.live_release()
            former = live.replaced() if live else None
            if former is None:
                raise ReleaseError(f"{self.slug} has no earlier release to go back to.")
            if former.state == Release.State.RETIRED:
                raise ReleaseError(f"{former} is retired. Promote it if people are to get it.")
            former.go_live(ReleaseEvent.Action.ROLL_BACK, by)
        return former

    def lock(self) -> None:
        """Wait for others who change this model's releases; ends with the transaction."""
        Model.objects.select_for_update().get(pk=self.pk)


class ReleaseQuerySet(models.QuerySet["Release"]):
    def serving(self, user: Any = None) -> "Release | None":
        """What answers this person (or, of several, most people); with the `arm` it came by."""
        return router.choose(self.arms(settings.MODEL), user)

    def arms(self, slug: str) -> "list[Release]":
        """Releases that share the people who get this model or alias, with `weight` and `arm`."""
        # Raw SQL because every send waits for it: see GenerationQuerySet.claim.
        return list(self.raw(router.ARMS, [slug, slug]))

    def wanted(self) -> "ReleaseQuerySet":
        """What needs a worker: people get it, it is to be warm, or it has runs to finish."""
        from inference.models import Generation

        served = [release.pk for release in self.arms(settings.MODEL)]
        runs = Generation.objects.active().filter(release=OuterRef("pk"))
        return self.filter(Q(pk__in=served) | Q(warm_until__gt=Now()) | Exists(runs))

    def update(self, **values: Any) -> int:
        _refuse_frozen(name for name in values if name not in LEARNT)
        return super().update(**values)


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
    engine_build = models.CharField(
        max_length=400, blank=True, help_text="Of the first worker that loaded it"
    )
    weights_file = models.CharField(max_length=255, blank=True, help_text="Relative to MODELS_DIR")
    weights_sha256 = models.CharField(max_length=64, blank=True)
    weights_bytes = models.PositiveBigIntegerField(default=0)
    template_sha256 = models.CharField(max_length=64, blank=True, help_text="Of the chat template")
    served_model = models.CharField(
        max_length=200, blank=True, help_text="What its servers call it (engine upstream)"
    )
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
    warm_until = models.DateTimeField(
        null=True, blank=True, help_text="Kept loaded until then, whether people get it or not"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ReleaseQuerySet.as_manager()

    # Of what `serving` returns: how it was chosen, and its share.
    arm = ""
    arm_id = 0
    weight = 1

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["model", "version"], name="one_release_per_version"),
            models.UniqueConstraint(
                fields=["model"], condition=Q(state="live"), name="one_live_release_per_model"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.model.slug} v{self.version}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Raises ReleaseError for a change of what a release is."""
        stored = type(self).objects.filter(pk=self.pk).values(*FROZEN).first() or {}
        changed = [name for name, value in stored.items() if value != getattr(self, name)]
        _refuse_frozen(name for name in changed if stored[name] or name not in LEARNT)
        super().save(*args, **kwargs)

    @property
    def name(self) -> str:  # as commands spell it
        return f"{self.model.slug}@{self.version}"

    @property
    def weights_path(self) -> Path:
        return Path(settings.MODELS_DIR) / self.weights_file

    @property
    def window(self) -> int:
        """Tokens it sees at once: as many as its servers do, or no more than this site wants."""
        is_ours = self.engine != "upstream"
        return min(settings.CONTEXT_TOKENS, self.context_tokens) if is_ours else self.context_tokens

    def prices(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FROZEN if name.startswith("price_")}

    def sampling_for(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """These parameters over this release's defaults, with a seed drawn if none was given.

        Raises RequestRefused for an unknown name or a value out of range.
        """
        drawn = {"seed": secrets.randbits(48), "max_tokens": settings.MAX_ANSWER_TOKENS}
        resolved = {**drawn, **self.parameters, **parameters}
        sampling = Sampling.from_parameters(resolved)
        if sampling.json_schema:  # as text: a JSON column may change the order of its properties
            resolved["json_schema"] = sampling.json_schema
        return resolved

    def servers(self) -> "list[Server]":
        """Those that run it, as the engine wants them."""
        return [backend.for_engine() for backend in self.backends.all()]

    def clean(self) -> None:
        try:
            self.sampling_for({})
        except RequestRefused as error:
            raise ValidationError({"parameters": str(error)}) from error

    # --- its life -------------------------------------------------------------------------
    def promote(self, by: By) -> None:
        """People get this release from now on; what they got before becomes a candidate."""
        with transaction.atomic():
            self.model.lock()
            self.refresh_from_db()
            if self.state != self.State.LIVE:
                self.go_live(ReleaseEvent.Action.PROMOTE, by)

    def go_live(self, action: str, by: By) -> None:
        """Within a transaction that holds the model's lock."""
        former = self.model.live_release()
        if former:
            former._set(state=self.State.CANDIDATE)
        state = self.state
        self._set(state=self.State.LIVE)
        self.note(action, by, from_state=state, replaced=former)

    def retire(self, by: By) -> None:
        """Nobody gets this release any more; runs it has are finished."""
        with transaction.atomic():
            self.model.lock()
            self.refresh_from_db()
            state = self.state
            if state != self.State.RETIRED:
                self._set(state=self.State.RETIRED, warm_until=None)
                self.note(ReleaseEvent.Action.RETIRE, by, from_state=state)

    def warm(self, by: By) -> None:
        """Have it loaded, and kept so for a while, ahead of a promotion. Raises ReleaseError."""
        if self.state == self.State.RETIRED:
            raise ReleaseError(f"{self} is retired, so it is not loaded.")
        with transaction.atomic():
            self._set(warm_until=Now() + WARM)
            self.note(ReleaseEvent.Action.WARM, by, from_state=self.state)

    def replaced(self) -> "Release | None":
        """What was live before this one was promoted."""
        promoted = self.events.filter(action=ReleaseEvent.Action.PROMOTE)
        event = promoted.select_related("replaced__model").order_by("-id").first()
        return event.replaced if event else None

    def last_fault(self) -> str:
        """Why it could not be loaded the last time that happened."""
        event = self.events.filter(action=ReleaseEvent.Action.BREAK).order_by("-id").first()
        return event.note if event else ""

    def examine(self) -> None:
        """Raises EngineError unless its file is whole, sane and survives a load in a child."""
        from inference.engines.trial import prove  # not in the web process: it brings Jinja

        if self.engine == "llama_cpp":
            prove(self.weights_path, self.weights_sha256, Path(settings.DATA_DIR) / "trials")

    def learn(self, engine_build: str) -> None:
        """What the first worker that loads it finds out; of another build the trail tells, once."""
        other = {"action": ReleaseEvent.Action.BUILD, "note": engine_build[:300]}
        if not self.engine_build:
            self._set(engine_build=engine_build[:400])
        elif self.engine_build != engine_build[:400] and not self.events.filter(**other).exists():
            self.note(by="worker", from_state=self.state, **other)
        if not self.template_sha256 and self.engine == "llama_cpp":
            self._set(template_sha256=read_header(self.weights_path).template_sha256)

    def found_broken(self, reason: str) -> None:
        """No worker can load it: people get what it replaced, and its runs do not wait in vain.

        What did load before, and has the same file, is tried again and again: the machine may
        lack memory, or a disk. With nothing to go back to it stays as it is: somebody has to act.
        """
        from inference.models import Generation, Worker

        if Worker.objects.living().filter(release=self, state=Worker.State.READY).exists():
            return  # elsewhere it loads: the fault is this machine's
        self._set(warm_until=None)
        self.note(ReleaseEvent.Action.BREAK, "worker", from_state=self.state, note=reason[:300])
        if not self.is_beyond_use:
            return
        former = self.replaced() if self.state == self.State.LIVE else None
        if former and former.state != self.State.RETIRED and not former.is_beyond_use:
            self.model.roll_back("worker")
            Generation.objects.move_unstarted(self, former)
        elif self.state == self.State.LIVE:
            return
        if self.is_pinned:
            self.retire("worker")  # an alias would go on sending its people here
        runs = Generation.objects.filter(release=self)
        runs.fail_unheld("The model that was to write this could not be loaded.")

    @property
    def is_beyond_use(self) -> bool:
        """Whether it failed to load and never did, or has another file than it was made of."""
        path = self.weights_path
        if self.weights_file and path.exists() and sha256_of(path) != self.weights_sha256:
            return True
        return not self.engine_build and bool(self.last_fault())

    @property
    def is_pinned(self) -> bool:
        """Whether an alias names this very release."""
        from inference.aliases import AliasArm

        return AliasArm.objects.filter(release=self).exists()

    def note(self, action: str, by: By, **facts: Any) -> None:
        """Write the audit trail."""
        ReleaseEvent.record(self, action, by, **facts)

    def _set(self, **values: Any) -> None:
        type(self).objects.filter(pk=self.pk).update(**values)
        self.refresh_from_db(fields=list(values))


FROZEN = tuple(
    field.attname
    for field in Release._meta.concrete_fields
    if field.name not in ("id", "state", "cannot_continue", "warm_until", "created_at")
)
LEARNT = ("engine_build", "template_sha256")  # empty until a worker has loaded the weights


def _refuse_frozen(names: Any) -> None:
    if changed := sorted(set(names) & {*FROZEN, "model"}):
        raise ReleaseError(f"A release never changes: {', '.join(changed)}. Make another one.")
