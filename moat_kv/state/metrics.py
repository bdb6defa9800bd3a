"""Figures of state models, for Prometheus: `registry` and what is counted in it.

A registry of our own, so that myosin, whose names these are, can be imported beside us. Give
`registry` to `prometheus_client.start_http_server` or `generate_latest`. Times are in seconds.
What is counted with each checkout and commit is counted by a `Tally`, which costs a quarter of a
`Summary`, and is only shown to Prometheus as one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.core import SummaryMetricFamily
from prometheus_client.registry import Collector

from moat_kv import version

registry = CollectorRegistry()
_MODEL = ("model",)


class Tally:
    """How often, and how long altogether. Any thread may add to it."""

    __slots__ = ("_lock", "count", "total_s")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.total_s = 0.0

    def observe(self, time_s: float) -> None:
        with self._lock:
            self.count += 1
            self.total_s += time_s


class Tallies(Collector):
    """One metric of several models, each with a `Tally`."""

    def __init__(self, name: str, about: str) -> None:
        self._name = name
        self._about = about
        self._by_model: dict[str, Tally] = {}
        registry.register(self)

    def labels(self, model: str) -> Tally:
        return self._by_model.setdefault(model, Tally())

    def collect(self) -> Iterator[SummaryMetricFamily]:
        family = SummaryMetricFamily(self._name, self._about, labels=_MODEL)
        for model, tally in list(self._by_model.items()):
            family.add_metric([model], tally.count, tally.total_s)
        yield family


class Contexts:
    """How many threads and tasks are inside of a State."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        gauge = Gauge(
            "myosin_active_contexts", "Threads and tasks inside a State.", registry=registry
        )
        gauge.set_function(lambda: self._count)

    def add(self, number: int) -> None:
        with self._lock:
            self._count += number


meta = Info("myosin_meta", "The version of the state models.", registry=registry)
meta.info({"version": version.VERSION, "distribution": "moat-kv-fleet"})
active_contexts = Contexts()
callback_failures = Counter(
    "myosin_cb_exc_count", "Exceptions in subscribers.", _MODEL, registry=registry
)
commit_latency = Tallies("myosin_commit_latency", "Time of commits.")
cache_latency = Tallies("myosin_cache_latency", "Time of writing a model's file.")
checkout_latency = Tallies("myosin_checkout_latency", "Time of checkouts.")
lock_wait = Tallies("myosin_lock_wait_latency", "Time of waiting for a model's lock.")
callback_latency = Tallies("myosin_cb_latency", "Time of subscribers' calls.")
conflicts = Counter(
    "myosin_conflict_count",
    "Commits that were refused as made from an older state.",
    _MODEL,
    registry=registry,
)
merged_notices = Counter(
    "myosin_cb_merged_count",
    "Changes that subscribers were told together with others, because too many waited.",
    _MODEL,
    registry=registry,
)
damaged_files = Counter(
    "myosin_cache_damaged_count", "Files that were set aside.", _MODEL, registry=registry
)


class ModelMetrics:
    """Those of one model's class, found once."""

    def __init__(self, label: str) -> None:
        self.callback_failures = callback_failures.labels(label)
        self.commit_latency = commit_latency.labels(label)
        self.cache_latency = cache_latency.labels(label)
        self.checkout_latency = checkout_latency.labels(label)
        self.lock_wait = lock_wait.labels(label)
        self.conflicts = conflicts.labels(label)
        self.callback_latency = callback_latency.labels(label)
        self.merged_notices = merged_notices.labels(label)
