"""What myosin's page "About" promises. It has no Python block; each test is named after a heading.

Corrections: none.
"""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator

import pytest

from moat_kv.state import RefusedValue, State, StateModel, attribute, between, settle
from moat_kv.state.registry import models


class Experiment(StateModel):
    """Its firmware takes at most 80 degrees."""

    celsius: float = attribute(default=20.0, check=between(0, 100))
    steps: list[str] = attribute(factory=list)

    def apply(self, old: Experiment) -> None:
        if self.celsius > 80:
            raise ValueError("the firmware refuses")


class Device(StateModel):
    name: str = "d1"


@pytest.fixture(autouse=True)
def loaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", str(tmp_path))
    load()
    yield
    State().reset()


def load() -> None:
    with State() as state:
        state.load(Experiment())
        state.load(Device())


def test_background_cached_state_is_recovered_and_subscribers_are_triggered() -> None:
    with State(Experiment) as state:
        experiment = state.checkout(Experiment)
        experiment.celsius = 42.0
        state.commit(experiment, cache=True)
    models.clear()  # as after a crash
    load()
    told: list[float] = []
    State().subscribe(Experiment, lambda experiment: told.append(experiment.celsius))
    assert settle(30)
    assert told == [42.0]
    assert State().checkout(Experiment).celsius == 42.0


def test_strictly_typed_api() -> None:
    with State(Device) as state:
        device = state.checkout(Device)
        with pytest.raises(RefusedValue):
            device.name = 3  # type: ignore[assignment]


def test_fully_permissive_any_thread_has_access() -> None:
    names: list[str] = []

    def elsewhere() -> None:
        with State(Device) as state:
            names.append(state.checkout(Device).name)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert names == ["d1"]


def test_checkout_what_is_done_to_a_copy_does_not_affect_the_state() -> None:
    experiment = State().checkout(Experiment)
    experiment.steps.append("heat")
    experiment.celsius = 50.0
    assert State().checkout(Experiment).steps == []
    assert State().checkout(Experiment).celsius == 20.0


def test_configuration_a_malformed_copy_is_refused() -> None:
    with State(Experiment) as state:
        experiment = state.checkout(Experiment)
        experiment.steps.append(7)  # type: ignore[arg-type]
        with pytest.raises(RefusedValue):
            state.commit(experiment)
        assert state.checkout(Experiment).steps == []


def test_state_commit_is_accepted_by_the_firmware_first() -> None:
    told: list[float] = []
    with State(Experiment) as state:
        state.subscribe(Experiment, lambda experiment: told.append(experiment.celsius))
        experiment = state.checkout(Experiment)
        experiment.celsius = 90.0
        with pytest.raises(ValueError, match="the firmware refuses"):
            state.commit(experiment)
        assert state.checkout(Experiment).celsius == 20.0
        experiment.celsius = 70.0
        state.commit(experiment)
    assert settle(30)
    assert told == [70.0]


def test_state_commit_without_a_firmware_step_skips_it() -> None:
    with State(Device) as state:
        device = state.checkout(Device)
        device.name = "d2"
        state.commit(device)
    assert State().checkout(Device).name == "d2"
