"""What Prometheus is told, every series in one place.

All of it is read from the database, so that any one replica speaks for the whole site; whether
Redis is well, each replica says for itself.
"""

from collections.abc import Iterator

from django.conf import settings
from django.db.models import Count, Max, Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from inference import redis_server
from inference.models import Generation, Worker

ACTIVE = (Generation.Status.QUEUED, Generation.Status.RUNNING)


class Demand(Collector):
    """How much each model has to do, and has room for: what workers are scaled by."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        runs = GaugeMetricFamily(
            "chatsite_runs", "Answers that wait or are being written", labels=["model", "state"]
        )
        slots = GaugeMetricFamily(
            "chatsite_slots", "Answers that living workers can write at once", labels=["model"]
        )
        demand = GaugeMetricFamily(
            "chatsite_demand",
            "Queued and running answers over slots; without a worker, over one",
            labels=["model"],
        )
        active, room = _active(), _slots()
        for model in sorted({model for model, _ in active} | set(room)):
            counts = {state: active.get((model, state), 0) for state in ACTIVE}
            for state, count in counts.items():
                runs.add_metric([model, state], count)
            slots.add_metric([model], room.get(model, 0))
            demand.add_metric([model], sum(counts.values()) / max(1, room.get(model, 0)))
        yield from (runs, slots, demand, _load_seconds(), *_redis())


def _active() -> dict[tuple[str, str], int]:
    runs = Generation.objects.filter(status__in=ACTIVE)
    counted = runs.values_list("release__model__slug", "status").annotate(Count("pk")).order_by()
    return {(model, state): count for model, state, count in counted}


def _slots() -> dict[str, int]:
    ready = Worker.objects.living().filter(state=Worker.State.READY)
    return dict(ready.values_list("release__model__slug").annotate(Sum("slots")).order_by())


def _load_seconds() -> GaugeMetricFamily:
    found = GaugeMetricFamily(
        "chatsite_model_load_seconds",
        "What the slowest of the living workers took to load the model",
        labels=["model"],
    )
    loaded = Worker.objects.living().filter(load_seconds__isnull=False)
    slowest = loaded.values_list("release__model__slug").annotate(Max("load_seconds")).order_by()
    for model, seconds in slowest:
        found.add_metric([model], seconds)
    return found


def _redis() -> Iterator[GaugeMetricFamily]:
    if settings.REDIS_URL:
        value = float(redis_server.server().takes_writes())
        told = "Whether Redis takes writes; without it the database serves instead"
        yield GaugeMetricFamily("chatsite_redis_up", told, value=value)


registry = CollectorRegistry(auto_describe=False)
registry.register(Demand())


def text() -> bytes:
    """In Prometheus's text format."""
    return generate_latest(registry)
