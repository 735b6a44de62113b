"""Sums of what was used, by the day."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from accounts.models import User
from chats.purge import keep_house
from inference.models import DailyUsage, Generation, Release

pytestmark = pytest.mark.django_db
MONDAY = datetime(2026, 11, 16, 9, tzinfo=UTC)


def ended(user: User, release: Release, at: datetime, **fields: Any) -> Generation:
    figures = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5, "status": "done"}
    return Generation.objects.create(
        user=user, release=release, finished_at=at, **{**figures, **fields}
    )


def sums(*names: str) -> list[tuple[Any, ...]]:
    return list(DailyUsage.objects.order_by("day", "purpose").values_list(*names))


def test_runs_are_summed_by_day_and_purpose(alice: User, bob: User, release: Release):
    ended(alice, release, MONDAY, summary_prompt_tokens=100, summary_tokens=7, cost_micros=3)
    ended(alice, release, MONDAY, status="failed")
    ended(bob, release, MONDAY, status="stopped")
    ended(bob, release, MONDAY, purpose="title")
    ended(bob, release, MONDAY + timedelta(days=1))
    Generation.objects.create(user=bob, release=release)  # not ended
    assert DailyUsage.objects.roll_up() == 3
    assert sums("day", "purpose", "people", "runs", "failed") == [
        (date(2026, 11, 16), "chat", 2, 3, 1),
        (date(2026, 11, 16), "title", 1, 1, 0),
        (date(2026, 11, 17), "chat", 1, 1, 0),
    ]
    tokens = sums("prompt_tokens", "cached_tokens", "completion_tokens", "cost_micros")
    assert tokens[0] == (130, 12, 22, 3)


def test_a_day_ends_at_midnight_utc(alice: User, release: Release):
    midnight = MONDAY.replace(hour=0)
    ended(alice, release, midnight - timedelta(seconds=1))
    ended(alice, release, midnight)
    DailyUsage.objects.roll_up()
    assert sums("day", "runs") == [(date(2026, 11, 15), 1), (date(2026, 11, 16), 1)]


def test_summing_again_counts_nothing_twice_and_what_came_late_once(alice: User, release: Release):
    ended(alice, release, MONDAY)
    ended(alice, release, MONDAY + timedelta(days=1))
    DailyUsage.objects.roll_up()
    ended(alice, release, MONDAY + timedelta(hours=14))
    for _ in range(2):
        DailyUsage.objects.roll_up()
    assert sums("day", "runs") == [(date(2026, 11, 16), 2), (date(2026, 11, 17), 1)]


def test_days_on_which_nobody_summed_are_made_up_for(alice: User, release: Release):
    ended(alice, release, MONDAY)
    DailyUsage.objects.roll_up()
    for days in (3, 4, 9):
        ended(alice, release, MONDAY + timedelta(days=days))
    DailyUsage.objects.roll_up()
    assert [day.day for (day,) in sums("day")] == [16, 19, 20, 25]


def test_the_sums_stay_when_a_person_and_their_runs_are_gone(
    alice: User, bob: User, release: Release
):
    ended(alice, release, MONDAY - timedelta(days=9))
    for person in (alice, bob):
        ended(person, release, MONDAY)
    keep_house()
    alice.delete()
    keep_house()
    assert sums("runs", "people", "prompt_tokens") == [(1, 1, 10), (2, 2, 20)]
