"""Staff have model files pulled and verified in the admin; a process beside a worker does it."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.urls import reverse

from accounts.models import User
from inference import file_work
from inference.catalogue import CATALOGUE, register
from inference.models import Alias, FileJob, Release
from tests.conftest import make_person

pytestmark = pytest.mark.django_db
ADD = "admin:inference_filejob_add"
ORDER = {"source": "https://example.org/tiny.gguf", "name": "tiny", "sha256": "a" * 64}


def allowed(*names: str) -> User:
    """Staff with these permissions and no others."""
    person = make_person("dora", is_staff=True)
    person.user_permissions.set(Permission.objects.filter(codename__in=names))
    return person


def asked_by(person: User) -> FileJob:
    return FileJob.objects.create(source="simulated", user=person, by=person.get_username())


def page_of(job: FileJob) -> str:
    return reverse("admin:inference_filejob_change", args=[job.pk])


def test_a_pull_is_asked_for_shown_until_it_is_done_and_names_who_asked(signed_in, charlie):
    client = signed_in(charlie)
    answer = client.post(reverse(ADD), {"source": "simulated"})
    job = FileJob.objects.get()
    assert (job.user, job.by, job.state) == (charlie, "charlie", "waiting")
    assert answer.headers["location"] == page_of(job)
    assert client.get(page_of(job))["Refresh"] == "2"
    file_work.do_all()
    page = client.get(page_of(job))
    assert "Release simulated@1 is recorded (live)." in page.content.decode()
    assert "Refresh" not in page.headers
    assert Release.objects.get().events.get().user == charlie


def test_how_far_it_is_is_shown(signed_in, charlie):
    job = asked_by(charlie)
    job.take()
    job.renew(step="Downloading", done_bytes=1 << 20, total_bytes=1 << 21)
    page = signed_in(charlie).get(page_of(job)).content.decode()
    assert '<progress value="1048576" max="2097152"></progress> Downloading: 1.0\xa0MB' in page


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"source": "file:/etc/tiny.gguf"}, "taken in by: ./manage.py models pull"),
        ({"source": "http://example.org/tiny.gguf"}, "is not a source of model files"),
        ({"sha256": ""}, "64 hexadecimal digits"),
        ({"name": "My_model"}, "small letters, digits and dashes"),
        ({"name": "taken"}, "An alias has this name"),
    ],
)
def test_a_pull_that_cannot_be_is_refused_in_the_form(signed_in, charlie, fields, sentence):
    Alias.objects.create(slug="taken", title="Taken")
    page = signed_in(charlie).post(reverse(ADD), {**ORDER, **fields})
    assert sentence in page.content.decode()
    assert not FileJob.objects.exists()


def test_only_who_may_add_jobs_has_files_pulled_or_calls_it_off(signed_in, charlie):
    other = signed_in(allowed("view_filejob", "view_release"))
    assert other.post(reverse(ADD), ORDER).status_code == 403
    job = asked_by(charlie)
    act(other, "filejob", "cancel", job)
    job.refresh_from_db()
    assert job.state == "waiting"
    assert "Cancel this job" not in other.get(page_of(job)).content.decode()


def test_who_may_add_jobs_sees_and_cancels_them_and_puts_nothing_live(signed_in):
    client = signed_in(allowed("add_filejob"))
    page = client.post(reverse(ADD), {"source": "simulated"}, follow=True)
    assert "Cancel this job" in page.content.decode()
    file_work.do_all()
    assert Release.objects.get().state == "candidate"
    client.post(reverse(ADD), {"source": "simulated"})
    job = FileJob.objects.latest("pk")
    act(client, "filejob", "cancel", job)
    job.refresh_from_db()
    assert (job.state, job.outcome) == ("cancelled", "Cancelled by dora.")


def test_a_job_of_somebody_who_has_left_the_staff_is_not_done(signed_in, charlie):
    asked_by(charlie)
    charlie.is_staff = False
    charlie.save()
    file_work.do_all()
    assert FileJob.objects.get().outcome == "charlie may not have this done any more."


def test_without_a_worker_the_page_says_who_could_do_it(signed_in, charlie):
    page = signed_in(charlie).get(page_of(asked_by(charlie)))
    assert "none is running. Or run: ./manage.py models work" in page.content.decode()


def test_the_page_of_no_job_sends_back_to_the_admin(signed_in, charlie):
    page = reverse("admin:inference_filejob_changelist") + "abc/change/"
    assert signed_in(charlie).get(page).status_code == 302


def test_nobody_changes_or_deletes_a_job_for_it_is_a_trail(signed_in, charlie):
    job = asked_by(charlie)
    client = signed_in(charlie)
    delete = reverse("admin:inference_filejob_delete", args=[job.pk])
    assert client.post(delete, {"post": "yes"}).status_code == 403
    assert client.post(page_of(job), {"source": "wordllama-256"}).status_code == 403
    assert FileJob.objects.get().source == "simulated"


def test_a_job_is_cancelled(signed_in, charlie):
    job = asked_by(charlie)
    act(signed_in(charlie), "filejob", "cancel", job)
    job.refresh_from_db()
    assert job.state == "cancelled"


def test_a_release_is_verified_and_one_without_a_file_says_so(signed_in, charlie):
    client, simulated = signed_in(charlie), register(CATALOGUE["simulated"])
    assert "has no file" in act(client, "release", "verify", simulated)
    real = register(CATALOGUE["smollm2-135m-instruct"])
    assert "will be compared" in act(client, "release", "verify", real)
    file_work.do_all()
    assert FileJob.objects.get().outcome == "The file is right."
    assert real.events.get(action="verify").by == "charlie"


def test_a_file_is_compared_once_at_a_time(signed_in, charlie):
    real = register(CATALOGUE["smollm2-135m-instruct"])
    FileJob.verify(real, charlie)
    assert "is being compared already" in act(signed_in(charlie), "release", "verify", real)


def act(client: Any, model: str, action: str, row: Any) -> str:
    page = reverse(f"admin:inference_{model}_changelist")
    answer = client.post(page, {"action": action, "_selected_action": [row.pk]}, follow=True)
    return str(answer.content.decode())
