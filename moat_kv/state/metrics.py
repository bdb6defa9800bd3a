"""Figures of state models, for Prometheus: `registry` and what is counted in it.

A registry of our own, so that myosin, whose names these are, can be imported beside us. Give
`registry` to `prometheus_client.start_http_server` or `generate_latest`. Times are in seconds.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, Summary

from moat_kv import version

registry = CollectorRegistry()
_MODEL = ("model",)

meta = Info("myosin_meta", "The version of the state models.", registry=registry)
meta.info({"version": version.VERSION, "distribution": "moat-kv-fleet"})
active_contexts = Gauge(
    "myosin_active_contexts", "Threads and tasks inside a State.", registry=registry
)
callback_failures = Counter(
    "myosin_cb_exc_count", "Exceptions in subscribers.", _MODEL, registry=registry
)
commit_latency = Summary("myosin_commit_latency", "Time of commits.", _MODEL, registry=registry)
cache_latency = Summary(
    "myosin_cache_latency", "Time of writing a model's file.", _MODEL, registry=registry
)
checkout_latency = Summary(
    "myosin_checkout_latency", "Time of checkouts.", _MODEL, registry=registry
)
lock_wait = Summary(
    "myosin_lock_wait_latency", "Time of waiting for a model's lock.", _MODEL, registry=registry
)
conflicts = Counter(
    "myosin_conflict_count",
    "Commits that were refused as made from an older state.",
    _MODEL,
    registry=registry,
)
callback_latency = Summary(
    "myosin_cb_latency", "Time of subscribers' calls.", _MODEL, registry=registry
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
