"""Models, releases, workers and runs, for staff."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.admin import PartAdmin, RecordAdmin, staff
from accounts.models import User
from inference.aliases import Alias, AliasArm
from inference.audit import ReleaseEvent
from inference.backend import Backend
from inference.file_admin import FileJobAdmin
from inference.models import Chunk, DailyUsage, FileJob, Generation, Prompt, Worker
from inference.releases import LEARNT, Model, Release, ReleaseError

admin.site.register(FileJob, FileJobAdmin)


def link(row: Any, text: str = "") -> SafeString:
    """A link to a row's own admin page."""
    page = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', page, text or str(row))


@admin.register(Model)
class ModelAdmin(admin.ModelAdmin):
    list_display = ("slug", "title", "is_enabled", "live_releases", "created_at")
    list_filter = ("is_enabled",)
    search_fields = ("slug", "title", "description")
    readonly_fields = ("created_at",)
    actions = ("roll_back",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Model]:
        live = Count("releases", filter=Q(releases__state=Release.State.LIVE))
        models: QuerySet[Model] = super().get_queryset(request).annotate(live=live)
        return models

    @admin.display(ordering="live")
    def live_releases(self, model: Any) -> int:
        return int(model.live)

    @admin.action(description="Roll back to what was live before", permissions=["change"])
    def roll_back(self, request: HttpRequest, models: QuerySet[Model]) -> None:
        for model in models:
            done = f"{model} is rolled back."
            tell(self, request, partial(model.roll_back, staff(request)), done)


OPERATED = ("id", "cannot_continue")  # of a release; the rest never changes, or by an action


class ReleaseForm(forms.ModelForm):
    """A release added here has the file of another one: a file is brought by a pull."""

    def clean(self) -> dict[str, Any]:
        facts: dict[str, Any] = super().clean() or {}
        if self.instance._state.adding and (
            facts.get("weights_file") or facts.get("engine") == "llama_cpp"
        ):
            file = {name: facts.get(name) for name in ("weights_file", "weights_sha256")}
            if not facts.get("weights_sha256") or not Release.objects.filter(**file).exists():
                raise forms.ValidationError(
                    "No release has this file and SHA-256. Have it pulled first (Model file jobs)."
                )
        return facts


@admin.register(Release)
class ReleaseAdmin(admin.ModelAdmin):
    """A release never changes; what changes is whether people get it."""

    list_display = ("__str__", "engine", "weights_file", "context_tokens", "state", "created_at")
    list_filter = ("state", "engine", "model")
    list_select_related = ("model",)
    search_fields = ("model__slug", "weights_file", "weights_sha256")
    actions = ("promote", "retire", "warm", "verify")
    form = ReleaseForm

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        fixed = [field.name for field in Release._meta.fields if field.name not in OPERATED]
        return fixed if obj else ["state", "warm_until", "created_at", *LEARNT]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # answers name it, and so does the audit trail

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        if not change:
            obj.note(ReleaseEvent.Action.ADD, staff(request))

    @admin.action(description="Promote: people get it", permissions=["change"])
    def promote(self, request: HttpRequest, releases: QuerySet[Release]) -> None:
        for release in releases:
            done = f"People get {release} now."
            tell(self, request, partial(promote, release, staff(request)), done)

    @admin.action(description="Retire: nobody gets it any more", permissions=["change"])
    def retire(self, request: HttpRequest, releases: QuerySet[Release]) -> None:
        for release in releases:
            done = f"Nobody gets {release} any more."
            tell(self, request, partial(release.retire, staff(request)), done)

    @admin.action(description="Warm: load it ahead of a promotion", permissions=["change"])
    def warm(self, request: HttpRequest, releases: QuerySet[Release]) -> None:
        for release in releases:
            done = f"A worker loads {release} now."
            tell(self, request, partial(release.warm, staff(request)), done)

    @admin.action(description="Verify: compare the file with its hash", permissions=["change"])
    def verify(self, request: HttpRequest, releases: QuerySet[Release]) -> None:
        for release in releases:
            done = f"The file of {release} will be compared. See: Model file jobs."
            tell(self, request, partial(FileJob.verify, release, staff(request)), done)


def promote(release: Release, by: User) -> None:
    """Only what a worker has loaded: here nobody waits while a file is tried."""
    if not release.engine_build:
        raise ReleaseError(f"{release} was never loaded. Warm it first, and promote it then.")
    release.promote(by)


def tell(page: Any, request: HttpRequest, act: Callable[[], object], done: str) -> None:
    """Do it, and say that it is done or why it cannot be."""
    try:
        act()
    except ReleaseError as error:
        page.message_user(request, str(error), messages.ERROR)
    else:
        page.message_user(request, done)


@admin.register(ReleaseEvent)
class ReleaseEventAdmin(RecordAdmin):
    """The audit trail: nobody changes or deletes it."""

    list_display = ("at", "action", "release", "from_state", "replaced", "by", "note")
    list_filter = ("action", "release__model")
    list_select_related = ("release__model", "replaced__model")
    search_fields = ("=by", "release__model__slug", "note")
    date_hierarchy = "at"
    ordering = ("-id",)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ArmInline(admin.TabularInline):
    model = AliasArm
    extra = 1


@admin.register(Alias)
class AliasAdmin(admin.ModelAdmin):
    list_display = ("slug", "title", "is_enabled")
    search_fields = ("slug", "title")
    inlines = (ArmInline,)


@admin.register(AliasArm)
class AliasArmAdmin(admin.ModelAdmin):
    list_display = ("alias", "model", "release", "weight")
    list_select_related = ("alias", "model", "release__model")


@admin.register(Backend)
class BackendAdmin(admin.ModelAdmin):
    """Servers of releases. Workers take up a change within a few seconds.

    Where prompts and keys are sent is for whoever runs the commands: `models connect`.
    """

    list_display = ("name", "release", "kind", "url", "slots", "is_draining", "trouble")
    list_filter = ("kind", "is_draining", "release")
    list_select_related = ("release__model",)
    search_fields = ("name", "url", "release__model__slug")
    fields = (
        "release", "name", "kind", "url", "served_model", "api_key_env", "slots", "is_draining",
        "trouble", "created_at",
    )  # fmt: skip
    readonly_fields = tuple(name for name in fields if name not in ("slots", "is_draining"))
    actions = ("drain", "take_back")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def save_model(
        self, request: HttpRequest, backend: Backend, form: "forms.ModelForm[Backend]", change: bool
    ) -> None:
        super().save_model(request, backend, form, change)
        for field in form.changed_data:
            backend.note(f"has {field} {getattr(backend, field)}", staff(request))

    def delete_model(self, request: HttpRequest, backend: Backend) -> None:
        backend.note("is deleted", staff(request))
        super().delete_model(request, backend)

    def delete_queryset(self, request: HttpRequest, backends: QuerySet[Backend]) -> None:
        for backend in backends:
            self.delete_model(request, backend)

    @admin.action(description="Drain: no new answers", permissions=["change"])
    def drain(self, request: HttpRequest, backends: QuerySet[Backend]) -> None:
        for backend in backends:
            backend.drain(True, staff(request))

    @admin.action(description="Take back: new answers again", permissions=["change"])
    def take_back(self, request: HttpRequest, backends: QuerySet[Backend]) -> None:
        for backend in backends:
            backend.drain(False, staff(request))


@admin.register(Worker)
class WorkerAdmin(PartAdmin):
    list_display = (
        "node", "pid", "release", "state", "percent_loaded", "load_seconds", "slots", "seen_at",
    )  # fmt: skip
    list_filter = ("state", "release")
    list_select_related = ("release__model",)
    search_fields = ("node", "boot_id", "pid")
    ordering = ("-started_at",)


@admin.register(Generation)
class GenerationAdmin(RecordAdmin):
    content = ("text", "token_ids", "error")  # which may have a server's words, and they a person's
    list_display = (
        "queued_at",
        "person",
        "arm",
        "purpose",
        "status",
        "waited",
        "first_token",
        "completion_tokens",
        "speed",
        "attempts",
    )
    list_filter = ("status", "purpose", "finish_reason", "release", "queued_at")
    list_select_related = ("user", "release__model")
    search_fields = ("=id", "=user__username", "=branch", "error", "=boot_id")
    date_hierarchy = "queued_at"
    ordering = ("-queued_at",)
    actions = ("stop",)
    readonly_fields = ("prompt_page", "log_page", "waited", "first_token", "speed")

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        *found, protected = super().get_deleted_objects(objs, request)
        under_way = [f"{run}: it is under way, so stop it first" for run in objs if run.is_active]
        return *found, [*protected, *under_way]

    def has_stop_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("inference.change_generation")

    @admin.action(description="Stop these runs", permissions=["stop"])
    def stop(self, request: HttpRequest, generations: QuerySet[Any]) -> None:
        Generation.objects.filter(pk__in=generations.values("pk")).cancel()

    @admin.display(description="user", ordering="user__username")
    def person(self, run: Generation) -> SafeString:
        return link(run.user)

    @admin.display(description="waited")
    def waited(self, run: Generation) -> str:
        return _seconds(run.queue_wait)

    @admin.display(description="first token")
    def first_token(self, run: Generation) -> str:
        return _seconds(run.time_to_first_token)

    @admin.display(description="tokens/s")
    def speed(self, run: Generation) -> str:
        return f"{run.tokens_per_second:.0f}" if run.tokens_per_second else "-"

    @admin.display(description="prompt")
    def prompt_page(self, run: Generation) -> SafeString | str:
        prompt = Prompt.objects.filter(pk=run.pk).first()
        return link(prompt) if prompt else "-"

    @admin.display(description="log")
    def log_page(self, run: Generation) -> SafeString:
        page = reverse("admin:inference_chunk_changelist")
        return format_html('<a href="{}?generation={}">{} events</a>', page, run.pk, run.log_seq)


def _seconds(time: timedelta | None) -> str:
    return "-" if time is None else f"{time.total_seconds():.2f} s"


@admin.register(Prompt)
class PromptAdmin(PartAdmin):
    content = ("messages", "summary")
    list_display = ("generation_id", "left_out", "left_out_before")
    search_fields = ("=generation__id",)
    ordering = ("-generation_id",)


@admin.register(Chunk)
class ChunkAdmin(PartAdmin):
    content = ("text", "token_ids")
    list_display = ("generation_id", "epoch", "seq", "fence", "kind", "offset")
    list_filter: ClassVar = ["kind"]
    search_fields = ("=generation__id",)
    ordering = ("-id",)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "generation" or super().lookup_allowed(lookup, value, request)


@admin.register(DailyUsage)
class DailyUsageAdmin(RecordAdmin):
    list_display = (
        "day",
        "release",
        "purpose",
        "people",
        "runs",
        "failed",
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "cost_micros",
    )
    list_filter = ("purpose", "release")
    list_select_related = ("release__model",)
    date_hierarchy = "day"
    ordering = ("-day", "release", "purpose")
