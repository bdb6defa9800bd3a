"""What tests of shared models do with them, each registry standing for a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moat_kv import P
from moat_kv.state import Models, State, StateModel
from tests.state.models import Counter

PLACE = P(":.moat.kv.model")


def until(what: Callable[[], object], limit_s: float = 30.0) -> None:
    """Wait for what another thread brings about."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def load(models: Models, model: StateModel | None = None) -> Any:
    with State(within=models) as state:
        return state.load(Counter() if model is None else model)


def bump(models: Models, times: int = 1) -> None:
    for _ in range(times):
        with State(Counter, within=models) as state:
            counter = state.checkout(Counter)
            counter.n += 1
            state.commit(counter)


def n_of(models: Models) -> int:
    return State(within=models).checkout(Counter).n
