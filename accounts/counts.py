"""Counts of limits in the database: for a site whose Redis is away."""

from datetime import timedelta
from typing import Any

from django.db.models import F
from django.db.models.functions import Now

from accounts.models import Count


class CountsInTable:
    """The part of Django's cache that limits need, for whole numbers only. Safe in parallel."""

    def get(self, key: str, default: Any = None) -> Any:
        found = self._living(key).values_list("value", flat=True).first()
        return default if found is None else found

    def add(self, key: str, value: Any, timeout: float) -> bool:
        """False when there is one already."""
        Count.objects.filter(key=key, expires_at__lte=Now()).delete()
        fresh = {"value": value, "expires_at": Now() + timedelta(seconds=timeout)}
        return Count.objects.get_or_create(key=key, defaults=fresh)[1]

    def incr(self, key: str, delta: int = 1) -> int:
        """Raises ValueError when there is none; its time to live stays."""
        if not self._living(key).update(value=F("value") + delta):
            raise ValueError(key)
        return int(self.get(key, delta))

    def _living(self, key: str) -> Any:
        return Count.objects.filter(key=key, expires_at__gt=Now())
