"""Waiting for subscribers while another thread has just brought about what they are to be told."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from moat_kv.state import State, delivery, settle
from tests.state.models import Counter


def test_settle_waits_for_what_can_be_seen_already_and_is_to_be_told_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    told_then: list[list[int]] = []
    can_be_seen, go_on = threading.Event(), threading.Event()
    put = delivery.Outgoing.put

    def put_late(*args: Any, **options: Any) -> None:
        can_be_seen.set()
        go_on.wait(30)
        put(*args, **options)

    def commit() -> None:
        State().commit(Counter(n=3), force=True)

    def wait() -> None:
        assert settle(30)
        told_then.append(list(told))

    with State() as state:
        state.load(Counter())
        state.subscribe(Counter, lambda counter: told.append(counter.n))
    monkeypatch.setattr(delivery.Outgoing, "put", put_late)
    threads = [threading.Thread(target=each) for each in (commit, wait)]
    threads[0].start()
    assert can_be_seen.wait(30)
    assert State().checkout(Counter).n == 3
    threads[1].start()
    threads[1].join(0.05)
    go_on.set()
    for thread in threads:
        thread.join()
    assert told_then == [[3]]
