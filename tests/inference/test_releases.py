"""A release never changes; which one people get does, one at a time, and each time is noted."""

from typing import Any
from uuid import uuid4

import pytest
from django.db import IntegrityError, transaction

from accounts.models import User
from inference.aliases import Alias
from inference.catalogue import CATALOGUE, register
from inference.engines.base import EngineError
from inference.models import Generation, Release, ReleaseEvent, Worker
from inference.releases import Model, ReleaseError
from tests.inference.gguf_files import METADATA, gguf

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _simulated_is_served(settings: Any) -> None:
    settings.MODEL = "simulated"


def states(release: Release) -> list[str]:
    return list(release.model.releases.order_by("version").values_list("state", flat=True))


def enqueue(user: User, release: Release, **fields: Any) -> Generation:
    messages = [{"role": "user", "content": "Hi"}]
    return Generation.objects.enqueue(user=user, release=release, messages=messages, **fields)


def test_what_a_release_is_cannot_be_changed_in_any_way(release):
    release.weights_sha256 = "1" * 64
    with pytest.raises(ReleaseError, match="never changes: weights_sha256"):
        release.save()
    with pytest.raises(ReleaseError, match="never changes: price_input"):
        Release.objects.filter(pk=release.pk).update(price_input=1)
    with pytest.raises(ReleaseError, match="never changes: model"):
        Release.objects.update(model=None)
    release.refresh_from_db()
    release.save()
    assert release.weights_sha256 == ""


def test_what_the_first_worker_learns_stays(release):
    release.learn("build 1")
    release.learn("build 2")
    release.refresh_from_db()
    assert release.engine_build == "build 1"
    release.engine_build = "build 3"
    with pytest.raises(ReleaseError, match="engine_build"):
        release.save()


def test_another_build_of_the_engine_that_loads_a_release_is_in_its_trail_once(release):
    for build in ("build 1", "build 2", "build 1", "build 2"):
        release.learn(build)
    notes = release.events.filter(action="build").values_list("by", "note")
    assert [(by.partition(" ")[0], note) for by, note in notes] == [("worker", "build 2")]


def test_the_first_release_of_a_model_is_live_and_the_next_one_a_candidate(release):
    second = release.model.record(
        {"engine": "simulated", "weights_sha256": "2"}, "test", context_tokens=9
    )
    assert states(release) == ["live", "candidate"]
    assert second.version == 2


def test_promotion_puts_one_live_and_what_was_live_back(release, other_release, charlie):
    other_release.promote(charlie)
    assert states(release) == ["candidate", "live"]
    assert Release.objects.serving() == other_release
    event = ReleaseEvent.objects.latest("id")
    facts = (event.action, event.release, event.replaced, event.from_state, event.user, event.by)
    assert facts == ("promote", other_release, release, "candidate", charlie, "charlie")


def test_promoting_what_is_live_changes_and_notes_nothing(release):
    before = ReleaseEvent.objects.count()
    release.promote("test")
    assert ReleaseEvent.objects.count() == before


def test_the_database_allows_one_live_release_a_model(release, other_release):
    with pytest.raises(IntegrityError), transaction.atomic():
        Release.objects.update(state="live")


def test_rolling_back_goes_from_each_release_to_the_one_it_replaced(release, other_release):
    third = release.model.record(
        {"engine": "simulated", "weights_sha256": "3"}, "test", context_tokens=9
    )
    other_release.promote("test")
    third.promote("test")
    assert release.model.roll_back("test") == other_release
    assert release.model.roll_back("test") == release
    with pytest.raises(ReleaseError, match="no earlier release"):
        release.model.roll_back("test")
    assert states(release) == ["live", "candidate", "candidate"]
    actions = list(ReleaseEvent.objects.order_by("id").values_list("action", flat=True))
    assert actions[-4:] == ["promote", "promote", "roll back", "roll back"]


def test_nobody_is_rolled_back_to_a_retired_release(release, other_release):
    other_release.promote("test")
    release.refresh_from_db()
    release.retire("test")
    with pytest.raises(ReleaseError, match="v1 is retired"):
        release.model.roll_back("test")
    assert states(release) == ["retired", "live"]


def test_a_retired_release_is_not_warmed_and_serves_nobody(release):
    release.retire("test")
    assert Release.objects.serving() is None
    with pytest.raises(ReleaseError, match="retired"):
        release.warm("test")


def test_a_release_is_wanted_while_people_get_it_or_it_is_to_be_warm_or_it_has_runs(
    release, other_release, alice
):
    wanted = Release.objects.wanted
    assert list(wanted()) == [release]
    other_release.warm("test")
    assert set(wanted()) == {release, other_release}
    run = enqueue(alice, release)
    other_release.promote("test")
    Release.objects.update(warm_until=None)
    assert set(wanted()) == {release, other_release}
    run.cancel()
    assert list(wanted()) == [other_release]


# --- files ---------------------------------------------------------------------------------
@pytest.fixture
def file(tmp_path, settings):
    settings.MODELS_DIR = tmp_path
    path = tmp_path / "tuned.gguf"
    path.write_bytes(gguf())
    return path


def test_a_file_is_recorded_with_what_its_header_says(release, file):
    added = release.model.add_release(file, "test", parameters={"temperature": 0.1})
    assert (added.state, added.version, added.context_tokens) == ("candidate", 2, 512)
    assert (added.weights_file, added.weights_bytes) == ("tuned.gguf", file.stat().st_size)
    assert len(added.template_sha256) == 64
    assert added.parameters == {"temperature": 0.1}


def test_the_same_file_and_settings_are_the_same_release_and_others_another(release, file):
    model = release.model
    first = model.add_release(file, "test")
    assert model.add_release(file, "test") == first
    assert model.add_release(file, "test", context_tokens=256).version == 3
    assert model.add_release(file, "test", parameters={"top_k": 3}).version == 4


def test_the_catalogues_new_weights_wait_for_a_promotion(release):
    entry = CATALOGUE["simulated"]
    assert register(entry) == release


# --- broken releases ------------------------------------------------------------------------
def test_a_live_release_that_cannot_be_loaded_gives_way_to_the_one_before(
    release, other_release, alice
):
    other_release.promote("test")
    waiting = enqueue(alice, other_release)
    begun = enqueue(alice, other_release)
    Generation.objects.filter(pk=begun.pk).update(fence=1)
    other_release.found_broken("it broke the trial load")
    assert states(release) == ["live", "candidate"]
    waiting.refresh_from_db()
    begun.refresh_from_db()
    assert (waiting.release, waiting.arm, waiting.status) == (release, "simulated v1", "queued")
    assert (begun.status, "could not be loaded" in begun.error) == ("failed", True)
    event = ReleaseEvent.objects.get(action="break")
    assert (event.release, event.note) == (other_release, "it broke the trial load")


def test_a_candidate_that_cannot_be_loaded_is_not_tried_for_ever(release, other_release):
    other_release.warm("test")
    other_release.found_broken("no")
    assert list(Release.objects.wanted()) == [release]


def test_the_only_release_stays_live_and_its_runs_wait(release, alice):
    run = enqueue(alice, release)
    release.found_broken("no")
    run.refresh_from_db()
    assert (run.status, states(release)) == ("queued", ["live"])


def test_a_release_that_did_load_before_is_not_given_up(release, other_release, alice):
    other_release.learn("llama.cpp 1")
    other_release.promote("test")
    run = enqueue(alice, other_release)
    other_release.found_broken("no memory left")
    run.refresh_from_db()
    assert (run.status, states(release)) == ("queued", ["candidate", "live"])


def test_two_releases_that_cannot_be_loaded_do_not_take_turns(release, other_release):
    other_release.promote("test")
    release.promote("test")
    release.found_broken("no")
    other_release.refresh_from_db()
    assert states(release) == ["candidate", "live"]
    other_release.found_broken("no")
    assert states(release) == ["candidate", "live"]


def test_an_alias_keeps_its_name_on_runs_that_are_moved(release, other_release, alice):
    other_release.promote("test")
    run = enqueue(alice, other_release, arm=f"default/{other_release}")
    other_release.found_broken("no")
    run.refresh_from_db()
    assert run.arm == f"default/{release}"


def test_an_alias_sends_nobody_to_a_candidate_that_cannot_be_loaded(release, other_release):
    alias = Alias.objects.create(slug="default", title="Default")
    alias.arms.create(model=release.model)
    alias.arms.create(release=other_release)
    assert len(Release.objects.arms("default")) == 2
    other_release.found_broken("no")
    assert Release.objects.arms("default") == [release]


def test_a_model_cannot_take_the_name_of_an_alias(db):
    Alias.objects.create(slug="default", title="Default")
    with pytest.raises(ReleaseError, match="An alias has this name"):
        Model.named("default")


def test_a_release_that_loads_elsewhere_is_not_given_up(release, other_release):

    other_release.promote("test")
    Worker.objects.create(
        boot_id=uuid4(), node="elsewhere", pid=1, release=other_release, state="ready"
    )
    other_release.found_broken("no room here")
    assert Release.objects.serving() == other_release


def test_broken_files_are_not_recorded(release, file):

    file.write_bytes(gguf({**METADATA, "general.alignment": 3}))
    with pytest.raises(EngineError, match="power of two"):
        release.model.add_release(file, "test")
    assert states(release) == ["live"]
