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
from accounts.models import User
from inference.catalogue import CATALOGUE
from inference.models import FileJob, Worker
from inference.sources import OUTSIDE


class PullForm(forms.ModelForm):
    asked_by: User

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance._state.adding:
            self.instance.user, self.instance.by = self.asked_by, self.asked_by.get_username()

    class Meta:
        model = FileJob
        fields = ("source", "name", "title", "sha256", "context_tokens")
        help_texts: ClassVar = {
            "source": f"{OUTSIDE}. Or {', '.join(CATALOGUE)}, which need nothing else.",
            "name": "The model it becomes a release of, such as my-model",
            "title": "What people see",
            "sha256": "Of the file, as its publisher states it",
            "context_tokens": "How many tokens it may see; its own number if empty",
        }
        wide = forms.TextInput(attrs={"size": 80})
        widgets: ClassVar = {"source": wide, "sha256": wide}


class FileJobAdmin(RecordAdmin):
    """A process beside a worker does it: a job's page shows how far it is, until it is over."""

    form = PullForm
    list_display = ("asked_at", "what", "progress", "by")
    list_filter = ("state", "kind")
    list_select_related = ("release__model",)
    search_fields = ("=by", "source", "name", "outcome")
    readonly_fields = ("progress",)
    actions = ("cancel",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return admin.ModelAdmin.has_add_permission(self, request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_cancel_permission(request) or super().has_view_permission(request, obj)

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Whoever may have one done: a pull, or (by an action of releases) a verification."""
        may_verify = request.user.has_perm("inference.change_release")
        return self.has_add_permission(request) or may_verify

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        asked: list[Any] = list(PullForm.Meta.fields)
        found = ["release", "by", "asked_at", "ended_at", "node", "lost"]
        return ["progress", "kind", *asked, *found] if obj else asked

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any
    ) -> Any:
        """A new job knows who asks for it before it is checked: each may have so many waiting."""
        form = super().get_form(request, obj, change, **options)
        return type("Form", (form,), {"asked_by": staff(request)})

    def response_add(self, request: HttpRequest, obj: Any, *rest: Any) -> HttpResponse:
        return redirect("admin:inference_filejob_change", obj.pk)

    def change_view(self, request: HttpRequest, object_id: str, *rest: Any, **also: Any) -> Any:
        """The browser asks for the page again while the job is not over."""
        may_cancel = self.has_cancel_permission(request)
        page = super().change_view(request, object_id, extra_context={"may_cancel": may_cancel})
        is_shown = request.method == "GET" and page.status_code == HTTPStatus.OK
        if is_shown and FileJob.objects.active().filter(pk=object_id).exists():
            page.headers["Refresh"] = "2"
        return page

    @admin.action(description="Cancel", permissions=["cancel"])
    def cancel(self, request: HttpRequest, jobs: QuerySet[FileJob]) -> None:
        for job in jobs:
            job.cancel(staff(request))

    @admin.display(description="job")
    def what(self, job: FileJob) -> str:
        return str(job)

    @admin.display(description="progress")
    def progress(self, job: FileJob) -> SafeString | str:
        if job.state == job.State.WAITING and not Worker.objects.living().exists():
            return "Waiting for a worker; none is running. Or run: ./manage.py models work"
        if job.state != job.State.RUNNING or not job.step:
            return f"{job.get_state_display()}. {job.outcome}"
        told = f"{job.step}: {filesizeformat(job.done_bytes)}"
        if not job.total_bytes:
            return told
        of = (job.done_bytes, job.total_bytes, told, filesizeformat(job.total_bytes))
        return format_html('<progress value="{}" max="{}"></progress> {} of {}', *of)
