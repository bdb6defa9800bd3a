"""Why a job is not running now."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moat_kv_runner import explaining
from moat_kv_runner.job import JobState
from moat_kv_runner.node_facts import NodeFacts

NOW = 100_000.0
CLAIM = {"node": "n1", "session": "s"}
RAN = JobState(started=NOW - 20, stopped=NOW - 10, node="n1", reason="done")
CUT = JobState(started=NOW - 1, reason="running")
APART = replace(CUT, node="n1")
FAILED = replace(RAN, backoff=2, reason="failed: ValueError: no bus")


def _known(
    job: Any = None, state: JobState | None = None, runners: tuple[str, ...] = ("n1",), **facts: Any
) -> explaining.Known:
    asked = {"code": "a", "target": NOW, **(job or {})} if not isinstance(job, str) else job
    return explaining.Known(
        job=asked,
        key=b"k",
        state=state or JobState(),
        runners={name: NodeFacts(tags=frozenset({"1wire"})) for name in runners},
        whose="pi3",
        **facts,
    )


CASES: dict[str, tuple[explaining.Known, str, float | None]] = {
    "running": (
        _known(state=JobState(started=NOW - 1, node="n1", reason="running"), claim=CLAIM),
        "it is running on n1",
        None,
    ),
    "stuck": (
        _known(state=JobState(started=NOW - 1, reason="stopping: no end"), claim=CLAIM),
        "on n1: stopping: no end",
        None,
    ),
    "wrong": (_known("no mapping"), "its entry is wrong: a job is a mapping", None),
    "wrong-cron": (_known({"cron": "x"}), "its entry is wrong: cron: 'x': wrong number", None),
    "disabled": (_known({"enabled": False}), "it is disabled; `enable` lets it run", None),
    "no-target": (_known({"target": None}), "it has no time; `set -t 0` starts it now", None),
    "done": (_known({"target": 1.0}, RAN), "it has run; `restart` or", None),
    "parked": (
        _known({"target": 1.0, "max_failures": 2}, FAILED),
        "parked after 2 failures in a row: restart it, or change its code; failed: ValueError: no",
        None,
    ),
    "back-off": (
        _known({"target": 1.0, "delay": 100}, FAILED),
        "back-off 2 after a failure; failed: ValueError: no bus",
        NOW - 10 + 121,
    ),
    "cron": (_known({"cron": "0 4 * * *", "zone": "UTC"}), "cron", 100_800.0),
    "repeat-of-the-group": (
        _known({"target": 1.0}, RAN, defaults={"repeat": 60.0}),
        "repeat",
        NOW + 50,
    ),
    "nobody-there": (_known(runners=()), "no runner serves pi3 now", NOW),
    "no-tag": (
        _known({"require": ["1wire", "gpio"]}),
        "no runner of pi3 has what it requires: 1wire, gpio",
        NOW,
    ),
    "drained": (_known(drained=("n1",)), "n1 could run it, but is drained", NOW),
    "lacks": (
        _known(state=JobState(reason="waiting: missing variable pin"), claim=CLAIM),
        "missing variable pin",
        NOW,
    ),
    "parted-each": (
        _known(parted=True, claim=CLAIM, runners=("n2",)),
        "the server is cut off; it is about to start without a claim",
        NOW,
    ),
    "parted-fenced": (
        _known({"on_split": "fenced"}, CUT, parted=True, claim=CLAIM),
        "the server is cut off, and `on_split` is fenced: it waits for the network",
        NOW - 1,
    ),
    "parted-fenced-by-the-group": (
        _known(defaults={"on_split": "fenced"}, parted=True),
        "the server is cut off, and `on_split` is fenced: it waits for the network",
        NOW,
    ),
    "parted-stick": (
        _known({"on_split": "stick"}, replace(CUT, sticks_to="n7"), parted=True),
        "the server is cut off, `on_split` is stick, and runner n7 had it: it waits",
        NOW - 1,
    ),
    "parted-stick-free": (
        _known({"on_split": "stick"}, parted=True),
        "the server is cut off, `on_split` is stick, and nobody had it here: it waits",
        NOW,
    ),
    "parted-running": (
        _known(parted=True, parts={"n1": APART}),
        "it is running on n1 without a claim: the server is cut off",
        None,
    ),
    "parted-running-at-node": (
        _known(state=replace(CUT, node="n1"), parted=True, kind="at"),
        "it is running on n1 without a claim: the server is cut off",
        None,
    ),
    "healed": (
        _known(state=CUT, parts={"n1": APART}),
        "it is running on n1, and about to have a claim again",
        None,
    ),
    "healed-twice": (
        _known(state=CUT, claim={**CLAIM, "node": "n2"}, parts={"n1": APART}, reconcile="newest"),
        "it is running on n2, and on n1 since the network was parted; one is about to go on (new",
        None,
    ),
    "settled": (
        _known(state=CUT, claim=CLAIM, parts={"n1": replace(APART, settled="n1")}),
        "it is running on n1",
        None,
    ),
    "part-of-a-dead-runner": (
        _known(parts={"n9": APART}),
        "it is about to start",
        NOW,
    ),
    "sticks": (
        _known({"on_split": "stick"}, replace(CUT, sticks_to="n7")),
        "runner n7 had it, and is not known to be dead (`on_split` is stick); it goes on there, or",
        NOW - 1,
    ),
    "strange-claim": (_known(claim=5), "no runner has written its claim; delete that", NOW),
    "holder-gone": (
        _known(claim=CLAIM, runners=("n2",)),
        "runner n1 had it and is not there; another has it when its session has ended",
        NOW,
    ),
    "holder-about-to": (_known(claim=CLAIM), "runner n1 has it and is about to start it", NOW),
    "about-to": (_known(), "it is about to start", NOW),
    "not-taken": (
        _known({"target": NOW - 60}, runners=("n2", "n1")),
        "nobody has taken it yet; n1, n2 could",
        NOW - 60,
    ),
}


@pytest.mark.parametrize("which", CASES)
def test_first_reason_is_told(which: str) -> None:
    known, text, at = CASES[which]
    found = explaining.why(known, NOW)
    assert found.text.startswith(text)
    assert found.at == pytest.approx(at)
