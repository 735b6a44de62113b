"""What was used, by the day: sums of the runs that ended, which stay when the runs are gone."""

from datetime import UTC, datetime, time, timedelta
from typing import Any, ClassVar

from django.db import models
from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.db.models.functions import TruncDate

AT_ONCE = 1000


class DailyUsageQuerySet(QuerySet["DailyUsage"]):
    def roll_up(self) -> int:
        """Bring the sums up to date; returns how many rows were written. May be repeated.

        The last day that is there and the one before it are summed anew: runs that were ended
        around midnight, or while nobody summed, are counted then.
        """
        from inference.models import Generation

        ended = Generation.objects.exclude(finished_at=None)
        if last := self.aggregate(last=Max("day"))["last"]:
            since = datetime.combine(last - timedelta(days=1), time.min, UTC)
            ended = ended.filter(finished_at__gte=since)
        keys = {"day": TruncDate("finished_at", tzinfo=UTC), "of": F("release")}
        named = {f"sum_{name}": sum_of for name, sum_of in SUMS.items()}
        found: Any = ended.order_by().values("purpose", **keys).annotate(**named)
        # In one order, so that two who do it at once cannot wait for each other.
        rows = [self._row(sums) for sums in found.order_by("day", "of", "purpose")]
        self.bulk_create(
            rows, AT_ONCE, update_conflicts=True, unique_fields=KEYS, update_fields=list(SUMS)
        )
        return len(rows)

    def _row(self, sums: dict[str, Any]) -> "DailyUsage":
        """With what was summed before where that is more: people may have gone with their runs."""
        keys = {"day": sums["day"], "release_id": sums["of"], "purpose": sums["purpose"]}
        before = self.filter(**keys).values(*SUMS).first() or dict.fromkeys(SUMS, 0)
        return DailyUsage(**keys, **{n: max(sums[f"sum_{n}"], before[n]) for n in SUMS})


class DailyUsage(models.Model):
    """Of one release and purpose on one day (UTC), counted by when the runs ended."""

    day = models.DateField()
    release = models.ForeignKey("inference.Release", on_delete=models.PROTECT, related_name="+")
    purpose = models.CharField(max_length=10)
    people = models.PositiveIntegerField(help_text="Different ones; not to be added up over days")
    runs = models.PositiveIntegerField()
    failed = models.PositiveIntegerField(help_text="Or interrupted")
    prompt_tokens = models.BigIntegerField(help_text="With those read for summaries")
    cached_tokens = models.BigIntegerField()
    completion_tokens = models.BigIntegerField(help_text="With those written for summaries")
    cost_micros = models.BigIntegerField(help_text="Millionths of the currency")

    objects = DailyUsageQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "daily usage"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["day", "release", "purpose"], name="one_sum_a_day_release_and_purpose"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.purpose}"


KEYS = ("day", "release", "purpose")
SUMS: dict[str, Any] = {
    "people": Count("user", distinct=True),
    "runs": Count("pk"),
    "failed": Count("pk", filter=Q(status__in=("failed", "interrupted"))),
    "prompt_tokens": Sum(F("prompt_tokens") + F("summary_prompt_tokens")),
    "cached_tokens": Sum("cached_tokens"),
    "completion_tokens": Sum(F("completion_tokens") + F("summary_tokens")),
    "cost_micros": Sum("cost_micros"),
}
