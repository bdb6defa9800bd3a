"""Figures for Prometheus."""

from __future__ import annotations

import prometheus_client
import pytest

from moat_kv.state import StaleModel, State, metrics, settle
from tests.state.models import Counter


def figure(name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_the_names_of_the_reference_are_counted(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", str(tmp_path_factory.mktemp("cache")))
    names = [
        "myosin_commit_latency_count",
        "myosin_cache_latency_count",
        "myosin_checkout_latency_count",
        "myosin_lock_wait_latency_count",
        "myosin_cb_latency_count",
        "myosin_conflict_count_total",
    ]
    before = {name: figure(name, model="Counter") for name in names}
    with State() as state:
        state.load(Counter())
        state.subscribe(Counter, lambda counter: None)
    assert figure("myosin_active_contexts") == 0
    with State(Counter) as state:
        assert figure("myosin_active_contexts") == 1
        counter = state.checkout(Counter)
        state.commit(counter, cache=True)
    with pytest.raises(StaleModel):
        State().commit(Counter())
    assert settle(30)
    after = {name: figure(name, model="Counter") - before[name] for name in names}
    assert after == {name: 2 if "commit" in name else 1 for name in names}


def test_the_version_is_told() -> None:
    text = prometheus_client.generate_latest(metrics.registry).decode()
    assert 'myosin_meta_info{distribution="moat-kv-fleet",version=' in text


def test_the_registry_is_our_own() -> None:
    default = prometheus_client.REGISTRY
    assert metrics.registry is not default
    # myosin makes this one, in the default registry.
    gauge = prometheus_client.Gauge("myosin_active_contexts", "theirs")
    default.unregister(gauge)
