"""Staff work in the admin; what people wrote stays out of it unless a setting allows."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.auth.models import Permission
from django.urls import reverse
from django.utils import timezone

from accounts.models import Count, Tier, User
from chats.models import Chat, Message
from chats.pending import PendingMessage
from inference.catalogue import CATALOGUE, register
from inference.models import (
    Alias,
    Chunk,
    FileJob,
    Generation,
    Model,
    Prompt,
    Release,
    ReleaseEvent,
    Worker,
)
from tests.conftest import make_person

SECRET = "the-planted-secret"
KEPT = (ReleaseEvent, FileJob, Release, Worker, Prompt, Chunk)  # or gone with the whole
pytestmark = pytest.mark.django_db


@pytest.fixture
def run(alice: User) -> Generation:
    """A finished answer of Alice's, her words and the model's in every column that has any."""
    from uuid import uuid4

    release = register(CATALOGUE["simulated"])
    Tier.objects.create(slug="free", name="Free")
    Worker.objects.create(boot_id=uuid4(), node="here", pid=1, release=release)
    run = Generation.objects.create(
        user=alice, release=release, status="done", text=SECRET, token_ids=SECRET.encode()
    )
    messages = [{"role": "user", "content": SECRET}]
    Prompt.objects.create(generation=run, messages=messages, summary=SECRET)
    Chunk.objects.create(
        generation=run, seq=1, fence=1, offset=0, text=SECRET, token_ids=SECRET.encode()
    )
    chat = Chat.objects.create(user=alice, title=SECRET, opening=SECRET)
    Message.objects.create(chat=chat, user=alice, role="assistant", text=SECRET, generation=run)
    PendingMessage.objects.create(chat=chat, user=alice, text=SECRET, client_id=uuid4())
    alias = Alias.objects.create(slug="default", title="Default")
    alias.arms.create(model=release.model)
    FileJob.objects.create(source="simulated", by="somebody")
    return run


def site_admins() -> list[Any]:
    ours = ("accounts", "inference", "chats")
    return [a for m, a in admin.site._registry.items() if m._meta.app_label in ours]


def pages() -> Iterator[str]:
    """Every page of the admin for every row there is, and a search for the secret.

    But for the pages on which nobody deletes what is an audit trail.
    """
    yield reverse("admin:index")
    for model_admin in site_admins():
        options = model_admin.opts
        base = f"admin:{options.app_label}_{options.model_name}"
        yield reverse(f"{base}_changelist")
        yield reverse(f"{base}_changelist") + "?q=zzz"
        for row in model_admin.model._base_manager.all():
            for page in ("change", "history", "delete"):
                if page != "delete" or model_admin.model not in KEPT:
                    yield reverse(f"{base}_{page}", args=[row.pk])


def test_every_table_of_ours_is_in_the_admin():
    from django.apps import apps

    ours = {
        m
        for app in ("accounts", "inference", "chats")
        for m in apps.get_app_config(app).get_models()
    }
    ours.discard(Count)  # bookkeeping of limits: nothing to look at
    assert ours == {model_admin.model for model_admin in site_admins()}


def test_no_page_shows_what_people_or_models_wrote(signed_in, charlie, run):
    client = signed_in(charlie)
    shown = [page for page in pages() if SECRET in client.get(page).content.decode()]
    assert shown == []


def test_every_page_opens(signed_in, charlie, run):
    client = signed_in(charlie)
    answers = {page: client.get(page).status_code for page in pages()}
    assert {page: status for page, status in answers.items() if status != 200} == {}


def test_no_page_of_a_row_shows_a_field_twice(rf, charlie, run):
    request = rf.get("/")
    request.user = charlie
    for page in site_admins():
        row = page.model._default_manager.first()
        fields = flatten_fieldsets(page.get_fieldsets(request, row))
        assert len(fields) == len(set(fields)), f"{page}: {fields}"


@pytest.mark.parametrize("model", ["chats_chat", "chats_message", "chats_pendingmessage"])
def test_search_does_not_tell_what_it_may_not_show(signed_in, charlie, run, model):
    client = signed_in(charlie)
    page = client.get(reverse(f"admin:{model}_changelist"), {"q": SECRET})
    assert page.context["cl"].result_count == 0


@pytest.mark.parametrize(
    "lookup", ["text__startswith", "messages__text__startswith", "title__startswith"]
)
def test_a_filter_in_the_address_does_not_tell_either(signed_in, charlie, run, lookup):
    for model in ("chats_chat", "chats_message", "inference_generation", "inference_chunk"):
        page = signed_in(charlie).get(reverse(f"admin:{model}_changelist"), {lookup: "the-"})
        assert page.status_code in (302, 400)


def test_the_setting_opens_the_words_to_staff(signed_in, charlie, run, settings):
    settings.ADMIN_SEES_MESSAGES = True
    page = signed_in(charlie).get(reverse("admin:inference_generation_change", args=[run.pk]))
    assert SECRET in page.content.decode()


def test_lists_do_not_ask_more_queries_for_more_rows(
    signed_in, charlie, run, alice, django_assert_max_num_queries
):
    client = signed_in(charlie)
    for number in range(12):
        other = Generation.objects.create(user=alice, release=run.release, status="done")
        chat = Chat.objects.create(user=alice, title=str(number))
        Message.objects.create(chat=chat, user=alice, role="assistant", generation=other)
    for model_admin in site_admins():
        options = model_admin.opts
        with django_assert_max_num_queries(11):
            client.get(reverse(f"admin:{options.app_label}_{options.model_name}_changelist"))


def test_a_release_cannot_be_changed_only_put_live_or_retired(signed_in, charlie, run):
    client, release = signed_in(charlie), run.release
    page = reverse("admin:inference_release_change", args=[release.pk])
    client.post(page, {"engine": "other", "version": 9, "state": "live"})
    release.refresh_from_db()
    assert (release.engine, release.version) == ("simulated", 1)
    changelist = reverse("admin:inference_release_changelist")
    client.post(changelist, {"action": "retire", "_selected_action": [release.pk]})
    assert Release.objects.get().state == "retired"


def act(client: Any, model: str, action: str, row: Any) -> str:
    """Choose an action for a row of a list, and what the page says then."""
    page = reverse(f"admin:inference_{model}_changelist")
    answer = client.post(page, {"action": action, "_selected_action": [row.pk]}, follow=True)
    return str(answer.content.decode())


def test_staff_promote_warm_and_roll_back_and_each_is_noted(signed_in, charlie, run):
    client, first = signed_in(charlie), run.release
    second = Release.objects.create(
        model=first.model, version=2, engine="simulated", context_tokens=9
    )
    assert "was never loaded. Warm it first" in act(client, "release", "promote", second)
    second.learn("simulated")
    assert f"People get {second} now" in act(client, "release", "promote", second)
    assert f"A worker loads {second} now" in act(client, "release", "warm", second)
    assert "is rolled back" in act(client, "model", "roll_back", first.model)
    assert "no earlier release" in act(client, "model", "roll_back", first.model)
    first.refresh_from_db()
    assert first.state == "live"
    trail = ReleaseEvent.objects.filter(user=charlie).order_by("id")
    assert list(trail.values_list("action", flat=True)) == ["promote", "warm", "roll back"]


def test_a_release_is_added_with_other_settings_but_with_no_other_file(signed_in, charlie, run):
    client, page = signed_in(charlie), reverse("admin:inference_release_add")
    asked = {
        "model": run.release.model_id, "version": 2, "engine": "llama_cpp", "context_tokens": 512,
        "parameters": "{}", "price_input": "0.5", "price_cached": 0, "price_output": 1,
        "weights_bytes": 3, "weights_file": "../any.gguf", "weights_sha256": "1" * 64,
        "cannot_continue": "interrupt",
    }  # fmt: skip
    for refused in (asked, asked | {"weights_file": ""}, asked | {"weights_sha256": ""}):
        assert "Have it pulled first" in client.post(page, refused).content.decode()
    known = {"engine": "llama_cpp", "weights_file": "a.gguf", "weights_sha256": "1" * 64}
    run.release.model.record(known, "test", context_tokens=256)
    asked |= {"weights_file": "a.gguf", "version": 3}
    assert client.post(page, asked).status_code == 302
    assert Release.objects.get(version=3).price_input == Decimal("0.5")


def test_the_audit_trail_can_be_changed_by_nobody(signed_in, charlie, run):
    client, event = signed_in(charlie), ReleaseEvent.objects.get()
    for page in ("change", "delete"):
        address = reverse(f"admin:inference_releaseevent_{page}", args=[event.pk])
        assert client.post(address, {"post": "yes", "action": "retire"}).status_code == 403


def test_an_alias_is_made_with_its_arms_and_their_weights(signed_in, charlie, run):
    fields = {"slug": "trial", "title": "Trial", "is_enabled": "on"}
    arm = {"model": run.release.model_id, "weight": 9}
    rows = {f"arms-0-{name}": value for name, value in arm.items()}
    counts = {"arms-TOTAL_FORMS": 1, "arms-INITIAL_FORMS": 0}
    page = reverse("admin:inference_alias_add")
    signed_in(charlie).post(page, {**fields, **rows, **counts})
    assert Alias.objects.get(slug="trial").arms.get().weight == 9


def test_staff_can_stop_a_run(signed_in, charlie, run, alice):
    active = Generation.objects.create(user=alice, release=run.release, queued_at=timezone.now())
    changelist = reverse("admin:inference_generation_changelist")
    signed_in(charlie).post(changelist, {"action": "stop", "_selected_action": [active.pk]})
    active.refresh_from_db()
    assert active.cancelled_at


def test_a_run_under_way_is_stopped_before_it_can_be_deleted(signed_in, charlie, run):
    client, delete = signed_in(charlie), reverse("admin:inference_generation_delete", args=[run.pk])
    Generation.objects.filter(pk=run.pk).update(status="running")
    said = client.post(delete, {"post": "yes"}).content.decode()
    every = {"action": "delete_selected", "_selected_action": [str(run.pk)], "post": "yes"}
    client.post(reverse("admin:inference_generation_changelist"), every)
    assert "under way, so stop it first" in said
    assert Generation.objects.filter(pk=run.pk).exists()
    Generation.objects.filter(pk=run.pk).update(status="stopped")
    client.post(delete, {"post": "yes"})
    assert not Generation.objects.filter(pk=run.pk).exists()


def test_parts_go_with_the_whole_and_not_alone(signed_in, charlie, run, alice):
    """A worker without its row would serve unseen; an answer without its pieces cannot go on."""
    client = signed_in(charlie)
    kinds: tuple[Any, ...] = (Chunk, Prompt, Worker, Release)
    for kind in kinds:
        row = kind.objects.all()[0]
        gone = reverse(f"admin:inference_{kind._meta.model_name}_delete", args=[row.pk])
        assert client.post(gone, {"post": "yes"}).status_code == 403
        assert kind.objects.filter(pk=row.pk).exists()
    client.post(reverse("admin:accounts_user_delete", args=[alice.pk]), {"post": "yes"})
    assert not Prompt.objects.filter(pk=run.pk).exists()


@pytest.mark.parametrize("path", ["/admin/", "/admin/chats/message/"])
def test_people_who_are_not_staff_do_not_get_in(client, signed_in, alice, path):
    assert client.get(path).status_code == 302
    assert signed_in(alice).get(path).status_code == 302


def test_what_staff_do_to_a_server_is_in_the_audit_trail(charlie, signed_in):
    release = Model.objects.create(slug="far", title="Far").releases.create(
        version=1, engine="upstream", context_tokens=1024
    )
    server = release.backends.create(
        name="one", url="http://127.0.0.1:1", kind="llama_server", served_model="m", slots=8
    )
    client = signed_in(charlie)
    page = reverse("admin:inference_backend_change", args=[server.pk])
    client.post(page, {"slots": 4, "is_draining": "on"})
    client.post(reverse("admin:inference_backend_delete", args=[server.pk]), {"post": "yes"})
    assert not release.backends.exists()
    notes = release.events.filter(user=charlie).order_by("pk").values_list("note", flat=True)
    assert list(notes) == ["one has slots 4", "one has is_draining True", "one is deleted"]


def test_who_may_change_people_cannot_give_rights_or_become_somebody_with_them(
    signed_in, charlie, alice
):
    eve = make_person("eve", is_staff=True)
    eve.user_permissions.set(
        Permission.objects.filter(content_type__app_label__in=("accounts", "auth"))
    )
    client = signed_in(eve)
    for person in (charlie, eve):
        page = reverse("admin:accounts_user_change", args=[person.pk])
        assert (
            client.post(page, {"username": person.username, "is_superuser": "on"}).status_code
            == 403
        )
        secret = reverse("admin:auth_user_password_change", args=[person.pk])
        assert client.get(secret).status_code == 403
        gone = reverse("admin:accounts_user_delete", args=[person.pk])
        assert client.post(gone, {"post": "yes"}).status_code == 403
    page = reverse("admin:accounts_user_change", args=[alice.pk])
    fields = {"username": "alice", "is_active": "on", "is_staff": "on", "is_superuser": "on"}
    assert client.post(page, {**fields, "first_name": "A"}).status_code == 302
    alice.refresh_from_db()
    assert (alice.first_name, alice.is_staff, alice.is_superuser) == ("A", False, False)
    assert client.get(reverse("admin:auth_group_add")).status_code == 403
