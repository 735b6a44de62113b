"""Pulls and verifications of model files, for staff."""

from http import HTTPStatus
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html
from django.utils.safestring import SafeString

from accounts.admin import RecordAdmin, staff
from inference.catalogue import CATALOGUE
from inference.file_jobs import FileJob, FileJobQuerySet
from inference.sources import OUTSIDE


class PullForm(forms.ModelForm):
    class Meta:
        model = FileJob
        fields = ("source", "name", "title", "sha256", "context_tokens")
        help_texts: ClassVar = {
            "source": f"{' or '.join(CATALOGUE)}: needs nothing else. Or a source as in {OUTSIDE}.",
            "name": "The model it becomes a release of, such as my-model",
            "title": "What people see",
            "sha256": "Of the file, as its publisher states it",
            "context_tokens": "How many tokens it may see; its own number if empty",
        }


class FileJobAdmin(RecordAdmin):
    """A process beside a worker does it: the pages show how far it is, and come anew until then."""

    form = PullForm
    list_display = ("asked_at", "what", "progress", "by", "node")
    list_filter = ("state", "kind")
    list_select_related = ("release__model",)
    search_fields = ("=by", "source", "name", "outcome")
    readonly_fields = ("progress",)
    actions = ("cancel",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.has_add_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        every = [field.name for field in FileJob._meta.fields]
        return ["progress", *every] if obj else list(PullForm.Meta.fields)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        obj.user, obj.by = staff(request), staff(request).get_username()
        super().save_model(request, obj, form, change)

    def response_add(self, request: HttpRequest, obj: Any, *rest: Any) -> HttpResponse:
        return redirect("admin:inference_filejob_change", obj.pk)

    def changeform_view(self, request: HttpRequest, object_id: Any = None, *rest: Any) -> Any:
        page = super().changeform_view(request, object_id, *rest)
        return fresh(page, FileJob.objects.filter(pk=object_id))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return fresh(super().changelist_view(request, extra_context), FileJob.objects.all())

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, jobs: QuerySet[FileJob]) -> None:
        for job in jobs:
            job.cancel()

    @admin.display(description="job")
    def what(self, job: FileJob) -> str:
        return str(job)

    @admin.display(description="progress")
    def progress(self, job: FileJob) -> SafeString | str:
        if job.state != job.State.RUNNING or not job.step:
            return f"{job.get_state_display()}. {job.outcome}"
        told = f"{job.step}: {filesizeformat(job.done_bytes)}"
        if not job.total_bytes:
            return told
        of = (job.done_bytes, job.total_bytes, told, filesizeformat(job.total_bytes))
        return format_html('<progress value="{}" max="{}"></progress> {} of {}', *of)


def fresh(page: Any, jobs: FileJobQuerySet) -> Any:
    """Let the browser ask for the page again while one of the jobs is not over."""
    if page.status_code == HTTPStatus.OK and jobs.active().exists():
        page.headers["Refresh"] = "2"
    return page
