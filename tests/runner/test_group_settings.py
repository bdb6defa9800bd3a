"""What a group's settings may be, and how wrong ones are told."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv import P
from moat_kv.notgiven import NotGiven
from moat_kv_runner import group_settings
from tests.client.waiting import until
from tests.runner.bench import bench

GOOD: list[tuple[Any, int | None, dict[str, Any]]] = [
    (NotGiven, None, {}),
    (None, None, {}),
    ({}, None, {}),
    ({"nodes": 2, "defaults": {"delay": 3}}, 2, {"delay": 3.0}),
    ({"nodes": None, "defaults": {"delay": None}}, None, {}),
]

ALL = (
    "delay, backoff, max_delay, max_failures, repeat, zone, between, jitter, catch_up, overlap,"
    " ok_after, require, prefer, isolate, on_split, env and limits"
)
NAMES = "nodes, defaults, drained and reconcile"
WRONG: dict[str, tuple[Any, str]] = {
    "no-mapping": (5, "a mapping of nodes, defaults, drained and reconcile is needed, not 5"),
    "unknown": (
        {"node": 2},
        f"node: there is no such setting of a group; there are {NAMES}",
    ),
    "text": ({"nodes": "2"}, "nodes: a whole number from 1 is needed, not '2'"),
    "none-at-all": ({"nodes": 0}, "nodes: a whole number from 1 is needed, not 0"),
    "flag": ({"nodes": True}, "nodes: a whole number from 1 is needed, not True"),
    "defaults": ({"defaults": [1]}, f"defaults: a mapping of {ALL} is needed"),
    "unknown-default": (
        {"defaults": {"target": 1}},
        f"defaults.target: there is no such default of jobs; there are {ALL}",
    ),
    "drained": ({"drained": "n1"}, "drained: a list of names of nodes is needed, not 'n1'"),
    "reconcile": (
        {"reconcile": "best"},
        "reconcile: one of oldest, newest and lowest_load is needed, not 'best'",
    ),
    "wrong-default": ({"defaults": {"delay": -1}}, "defaults.delay: 0 or more, not -1"),
}


@pytest.mark.parametrize(("value", "nodes", "defaults"), GOOD, ids=str)
def test_good_settings_hold(value: Any, nodes: int | None, defaults: dict[str, Any]) -> None:
    assert group_settings.parse(value) == group_settings.GroupSettings(
        nodes=nodes, defaults=defaults
    )


@pytest.mark.parametrize("which", list(WRONG))
def test_wrong_settings_are_named_with_what_would_be_right(which: str) -> None:
    value, problem = WRONG[which]
    assert group_settings.parse(value) == group_settings.GroupSettings(problems=(problem,))


def test_what_is_right_beside_it_holds() -> None:
    parsed = group_settings.parse({"nodes": 3, "defaults": {"delay": "x", "repeat": 2}, "x": 1})
    assert (parsed.nodes, parsed.defaults, len(parsed.problems)) == (3, {"repeat": 2.0}, 2)


@pytest.mark.anyio
async def test_wrong_settings_are_logged_once_and_disturb_no_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        place = b.places.run + P("any.default")
        await b.desk.set(place, {"nodes": "two", "defaults": {"delay": "x"}})
        await b.node("n1")
        await b.job("return 1")
        assert (await b.state()).result == 1
        await b.desk.set(place, {"nodes": "two"})
        await b.desk.set(place, {"nods": 2})
        await until(lambda: "nods" in caplog.text)
        await b.desk.set(place, {"nodes": 2})
    begin = "the settings of the group, :.moat.kv.run.any.default: "
    told = [each.getMessage() for each in caplog.records if begin in each.getMessage()]
    assert told == [
        f"{begin}{problem}; this one does not count"
        for problem in (
            "nodes: a whole number from 1 is needed, not 'two'",
            "defaults.delay: a number is needed, not 'x'",
            f"nods: there is no such setting of a group; there are {NAMES}",
        )
    ]
