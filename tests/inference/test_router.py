"""An alias shares people between arms by weight, and moves nobody it need not move."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from inference import router
from inference.models import Alias, AliasArm, Generation, Model, Release

PEOPLE = [SimpleNamespace(pk=number) for number in range(2000)]


def arms(**weights: int) -> list[Any]:
    return [SimpleNamespace(arm_id=name, weight=weight) for name, weight in weights.items()]


def shares(found: list[Any]) -> list[str]:
    """The arm of each of the people, in order."""
    return [pick(found, person) for person in PEOPLE]


def pick(found: list[Any], person: Any) -> str:
    chosen: Any = router.choose(found, person)
    return str(chosen.arm_id)


@pytest.mark.parametrize(
    "weights", [{"a": 1, "b": 1}, {"a": 90, "b": 10}, {"a": 5, "b": 3, "c": 2}]
)
def test_people_are_shared_out_by_weight(weights):
    counted = Counter(shares(arms(**weights)))
    whole = sum(weights.values())
    for name, weight in weights.items():
        assert abs(counted[name] / len(PEOPLE) - weight / whole) < 0.04  # 3.5 standard deviations


def test_everybody_stays_while_nothing_changes():
    assert shares(arms(a=7, b=3)) == shares(arms(b=3, a=7))


def test_a_greater_weight_draws_people_to_its_arm_and_moves_no_others():
    before, after = shares(arms(a=90, b=5, c=5)), shares(arms(a=90, b=15, c=5))
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {new for _, new in moved} == {"b"}
    assert len(moved) / len(PEOPLE) < 0.13  # the share that has to: 15/110 - 5/100 = 0.086


def test_a_lost_arm_moves_only_its_own_people():
    before, after = shares(arms(a=5, b=3, c=2)), shares(arms(a=5, b=3))
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {"c"}


def test_without_a_person_the_heaviest_arm_answers_and_without_arms_nobody():
    assert pick(arms(a=1, b=9), None) == "b"
    assert router.choose([], PEOPLE[0]) is None


# --- in the database ------------------------------------------------------------------------
@pytest.fixture
def alias(release, other_release, settings) -> Alias:
    """Half for the model's live release, half for one that is still a candidate."""
    made = Alias.objects.create(slug="default", title="Default")
    made.arms.create(model=release.model, weight=1)
    made.arms.create(release=other_release, weight=1)
    settings.MODEL = "default"
    return made


def seen() -> set[str]:
    found = (Release.objects.serving(person) for person in PEOPLE[:60])
    return {release.arm for release in found if release}


def test_an_alias_serves_models_and_single_releases(alias):
    assert seen() == {"default/simulated v1", "default/simulated v2"}


def test_one_query_finds_the_release_of_a_person(alias, alice, django_assert_num_queries):
    with django_assert_num_queries(1):
        Release.objects.serving(alice)


def test_a_promotion_moves_the_arm_of_the_model_with_it(alias, other_release):
    other_release.promote("test")
    assert seen() == {"default/simulated v2"}


def test_retired_releases_and_disabled_names_serve_nobody(alias, other_release):
    other_release.retire("test")
    assert seen() == {"default/simulated v1"}
    Model.objects.update(is_enabled=False)
    assert seen() == set()
    Model.objects.update(is_enabled=True)
    Alias.objects.update(is_enabled=False)
    assert seen() == set()


def test_every_arm_has_a_worker(alias, release, other_release):
    assert set(Release.objects.wanted()) == {release, other_release}


def test_the_arm_is_on_every_generation(alias, alice):
    release = Release.objects.serving(alice)
    assert release
    run = Generation.objects.enqueue(user=alice, release=release, messages=[])
    assert run.arm == release.arm
    again = Generation.objects.get(pk=run.pk)
    assert again.arm.startswith("default/simulated v")
    plain = Release.objects.get(pk=release.pk)
    assert Generation.objects.enqueue(user=alice, release=plain, messages=[]).arm == str(plain)


def test_an_arm_is_a_model_or_a_release_and_weighs_something(alias, release):
    for wrong in (
        AliasArm(alias=alias),
        AliasArm(alias=alias, model=release.model, release=release),
        AliasArm(alias=alias, model=release.model, weight=0),
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            wrong.save()


def test_an_alias_and_a_model_cannot_have_one_name(alias, release):
    with pytest.raises(ValidationError, match="A model has this name"):
        Alias(slug=release.model.slug, title="x").full_clean()
    with pytest.raises(ValidationError, match="An alias has this name"):
        Model(slug="default", title="x").full_clean()


@pytest.mark.django_db
def test_nobody_is_promised_to_stay_here_when_any_arm_may_answer_elsewhere(
    client, release, settings
):
    made = Alias.objects.create(slug="shared", title="Shared")
    made.arms.create(model=release.model, weight=9)
    settings.MODEL = "shared"
    assert "stay on this server" in client.get("/").content.decode()
    there = Model.objects.create(slug="there", title="There")
    far = Release.objects.create(model=there, version=1, engine="upstream", context_tokens=512)
    made.arms.create(release=far, weight=1)
    assert "stay on this server" not in client.get("/").content.decode()
