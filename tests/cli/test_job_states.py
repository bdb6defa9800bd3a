"""`moat kv run ... at PATH`: what becomes of jobs, and the verbs that show and change it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import moat_kv
from moat_kv import P
from moat_kv_cli import output
from tests.cli.conftest import Moat
from tests.cli.test_jobs import JOB

pytestmark = pytest.mark.anyio

STATE = P(":.moat.kv.state.any.default.a.question")


@pytest.mark.usefixtures("answer")
async def test_enabling_restarting_and_deleting(moat: Moat, client: moat_kv.Client) -> None:
    await moat.fine("run", "at", "a.question", "set", "-c", "the.answer")
    await moat.fine("run", "at", "a.question", "disable")
    assert (await client.get(JOB)).value["enabled"] is False
    await moat.fine("run", "at", "a.question", "enable")
    assert (await client.get(JOB)).value["enabled"] is True
    before = time.time()
    await moat.fine("run", "at", "a.question", "restart")
    job = (await client.get(JOB)).value
    assert before <= job["restart"] == job["target"] <= time.time()
    await moat.fine("run", "at", "a.question", "delete")
    assert "value" not in await client.get(JOB)


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize(
    ("state", "code", "out", "err"),
    [
        pytest.param({"started": 1, "stopped": 2, "result": 42}, 0, "42\n", "", id="number"),
        pytest.param({"started": 1, "stopped": 2, "result": "a b"}, 0, "a b\n", "", id="text"),
        pytest.param({"started": 1, "stopped": 2, "result": [1]}, 0, "[1]\n", "", id="list"),
        pytest.param({"started": 1, "stopped": 2}, 0, "null\n", "", id="nothing"),
        pytest.param(
            {"started": 1, "stopped": 2, "backoff": 1, "reason": "failed: ValueError: x"},
            1,
            "",
            "moat: job a.question: failed: ValueError: x\n",
            id="failed",
        ),
        pytest.param(
            {"started": 3, "stopped": 2},
            3,
            "",
            "moat: no result of job a.question; its run has not ended yet\n",
            id="running",
        ),
        pytest.param(
            {"reason": "missing variable x"},
            3,
            "",
            "moat: no result of job a.question; missing variable x\n",
            id="waiting",
        ),
        pytest.param(
            None, 3, "", "moat: no result of job a.question; no runner has taken it yet\n", id="new"
        ),
        pytest.param(
            {"started": 3, "reason": "its runner was stopped"},
            3,
            "",
            "moat: no result of job a.question; its runner was stopped\n",
            id="left by its runner",
        ),
    ],
)
async def test_a_result_is_printed_bare(
    moat: Moat, client: moat_kv.Client, state: Any, code: int, out: str, err: str
) -> None:
    await moat.fine("run", "at", "a.question", "set", "-c", "the.answer", "-t", "0")
    if state is not None:
        await client.set(STATE, state)
    ended = await moat("run", "at", "a.question", "state", "-r")
    assert (ended.code, ended.out, ended.err) == (code, out, err)


@pytest.mark.usefixtures("answer")
async def test_states_are_shown_with_times(moat: Moat, client: moat_kv.Client) -> None:
    await moat.fine("run", "at", "a.question", "set", "-c", "the.answer", "-t", "0")
    await client.set(STATE, {"started": 1000.5, "stopped": 1001, "node": "n1", "result": 42})
    lines = (await moat.fine("run", "at", "a.question", "state")).splitlines()
    assert "node     n1" in lines
    assert any(line.startswith("started  19") and line.endswith(":40") for line in lines)
    shown = json.loads(await moat.fine("run", "at", "a.question", "state", "-o", "json"))
    assert shown["started"] == 1000.5


@pytest.mark.usefixtures("answer")
async def test_all_node_jobs_have_a_state_for_each_node(moat: Moat, client: moat_kv.Client) -> None:
    await moat.fine("run", "-n", "-", "at", "x", "set", "-c", "the.answer", "-t", "0")
    base = P(":.moat.kv.state.all.default")
    await moat.fine("run", "-n", "-", "at", "y", "set", "-c", "the.answer")
    for node, result in (("n1", 41), ("n2", 42)):
        await client.set(base / node / "x", {"started": 1, "stopped": 2, "result": result})
    await client.set(base / "n1" / "y", {"started": 1, "stopped": 2})
    out = await moat.fine("run", "-n", "-", "at", "x", "state", "-r")
    assert out == "n1  41\nn2  42\n"
    rows = await moat.fine("run", "-n", "-", "at", "x", "state", "-o", "json")
    assert [(each["node"], each["result"]) for each in json.loads(rows)] == [("n1", 41), ("n2", 42)]
    rows = await moat.fine("run", "-n", "-", "at", ":", "list", "-o", "jsonl")
    listed = [json.loads(line) for line in rows.splitlines()]
    assert [(each["path"], each["node"]) for each in listed] == [
        ("x", "n1"),
        ("x", "n2"),
        ("y", "n1"),
    ]


@pytest.mark.usefixtures("answer")
async def test_listing_says_what_each_job_does(moat: Moat, client: moat_kv.Client) -> None:
    states: dict[str, Any] = {
        "running": {"started": 5e9, "stopped": 1},
        "cut off": {"started": 5e9},
        "done": {"started": 5e9, "stopped": 5e9 + 1, "result": 1},
        "failed": {"started": 5e9, "stopped": 5e9 + 1, "backoff": 2},
        "stopped": {"started": 5e9, "stopped": 5e9 + 1, "interrupted": True},
        "left": {"started": 5e9, "reason": "its runner was stopped"},
        "waiting": {"started": 1, "stopped": 2},
    }
    for name, state in states.items():
        await moat.fine("run", "at", name, "set", "-c", "the.answer", "-t", "0")
        await client.set(P(":.moat.kv.state.any.default") / name, state)
    await client.set(P(":.moat.kv.claim.any.default.running"), {"node": "n1"})
    await moat.fine("run", "at", "disabled", "set", "-c", "the.answer", "-t", "0")
    await moat.fine("run", "at", "disabled", "disable")
    await moat.fine("run", "at", "not started", "set", "-c", "the.answer")
    await client.set(P(":.moat.kv.run.any.default"), {"nodes": 2})
    rows = (await moat.fine("run", "at", ":", "list", "-o", "jsonl")).splitlines()
    listed = {each["path"]: each["state"] for each in map(json.loads, rows)}
    names = [*states, "disabled", "not started"]
    assert listed.pop("left") == "stopped"
    names.remove("left")
    assert listed == {name.replace(" ", ":_"): name for name in names}
    assert list(listed) == sorted(listed)
    info = json.loads(await moat.fine("run", "info", "-o", "json"))
    assert (info["settings"], info["wrong"]) == ({"nodes": 2}, [])
    assert info["nodes"] == {}
    assert len(info["jobs"]) == 9
    assert (info["kind"], info["node"], info["group"]) == ("any", None, {"$path": "default"})
    shown = await moat.fine("run", "info")
    assert "jobs for  any node of group default" in shown
    assert "nodes     no runner serves this group now" in shown
    await client.set(P(":.moat.kv.run.any.default"), {"node": 2})
    there = "nodes, defaults, drained and reconcile"
    told = f"node: there is no such setting of a group; there are {there}"
    assert told in await moat.fine("run", "info")
    assert json.loads(await moat.fine("run", "info", "-o", "json"))["wrong"] == [told]


@pytest.mark.usefixtures("answer")
async def test_a_state_that_is_not_there_says_why(moat: Moat, client: moat_kv.Client) -> None:
    async def why(*change: str) -> str:
        await moat.fine("run", "at", "x", *change)
        ended = await moat("run", "at", "x", "state")
        assert ended.code == 3
        return ended.error_line

    assert "it is not to be started" in await why("set", "-c", "the.answer")
    assert "no runner has taken it yet" in await why("set", "-t", "0")
    await client.set(P(":.moat.kv.claim.any.default.x"), {"node": "me"})
    assert "no runner has written its claim, :.moat.kv.claim.any.default.x; delete" in await why(
        "enable"
    )
    await client.delete(P(":.moat.kv.claim.any.default.x"))
    assert await why("disable") == "moat: no state of job x; it is disabled"


@pytest.mark.usefixtures("answer")
async def test_deleting_a_job_forgets_what_became_of_it(moat: Moat, client: moat_kv.Client) -> None:
    claim = P(":.moat.kv.claim.all.default.n1.x")
    states = [P(":.moat.kv.state.all.default") / node / "x" for node in ("n1", "n2")]
    await moat.fine("run", "-n", "-", "at", "x", "set", "-c", "the.answer", "-t", "0")
    await client.set(claim, {"node": "n1"})
    for state in states:
        await client.set(state, {"started": 1, "stopped": 2})
    await moat.fine("run", "-n", "-", "at", "x", "delete")
    # The holder of a claim deletes its state itself, once the run has ended.
    assert ["value" in await client.get(state) for state in states] == [True, False]


@pytest.mark.usefixtures("answer")
async def test_it_is_shown_when_a_job_is_due(moat: Moat, client: moat_kv.Client) -> None:
    states: dict[str, dict[str, Any]] = {
        "again": {"started": 5e9, "stopped": 5e9 + 1, "computed": 5e9 + 2, "reason": "done"},
        "never": {"started": 5e9, "stopped": 5e9 + 1, "reason": "done"},
        "stuck": {"reason": "waiting: no procedure x"},
    }
    for name, state in states.items():
        await moat.fine("run", "at", name, "set", "-c", "the.answer", "-t", "0")
        await client.set(P(":.moat.kv.state.any.default") / name, state)
    await moat.fine("run", "at", "soon", "set", "-c", "the.answer", "-t", "100")
    target = (await client.get(P(":.moat.kv.run.any.default.soon"))).value["target"]
    rows = (await moat.fine("run", "at", ":", "list", "-o", "jsonl")).splitlines()
    due = {each["path"]: each.get("due") for each in map(json.loads, rows)}
    assert due == {"again": 5e9 + 2, "never": None, "stuck": None, "soon": target}
    lines = (await moat.fine("run", "at", ":", "list")).splitlines()
    assert output.local_time(5e9 + 2) in lines[1]


@pytest.mark.usefixtures("answer")
async def test_people_see_why_a_job_does_not_run(moat: Moat, client: moat_kv.Client) -> None:
    states = {
        "failed": {"started": 5e9, "stopped": 5e9 + 1, "backoff": 1, "reason": "failed: no bus"},
        "waiting": {"reason": "waiting: no procedure x"},
        "done": {"started": 5e9, "stopped": 5e9 + 1, "reason": "done"},
    }
    for name, state in states.items():
        await moat.fine("run", "at", name, "set", "-c", "the.answer", "-t", "0")
        await client.set(P(":.moat.kv.state.any.default") / name, state)
    lines = (await moat.fine("run", "at", ":", "list")).splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["done", "failed", "waiting"]
    assert lines[1].endswith("  no bus")
    assert lines[2].endswith("  no procedure x")
    rows = await moat.fine("run", "at", "failed", "list", "-o", "jsonl")
    assert json.loads(rows)["reason"] == "failed: no bus"


async def test_monitoring_prints_what_becomes_of_jobs(moat: Moat, client: moat_kv.Client) -> None:
    await client.set(STATE, {"started": 1, "stopped": 2, "result": 42, "node": "n1"})
    out = await moat.fine("run", "monitor", "-f", "--count", "1", "-o", "jsonl")
    event = json.loads(out)
    assert (event["path"], event["event"], event["result"]) == ("a.question", "done", 42)
    await client.set(STATE, {"started": 3, "stopped": 2, "result": 42, "reason": "running"})
    line = await moat.fine("run", "monitor", "-f", "--count", "1", "-o", "table")
    assert line.split()[2:] == ["any", "a.question", "running"]
    await client.set(STATE, {"started": 3, "stopped": 2, "reason": "its runner was stopped"})
    line = await moat.fine("run", "monitor", "-f", "--count", "1", "-o", "table")
    assert line.endswith("a.question  stopped  its runner was stopped\n")
    assert await moat.fine("run", "monitor", "-f", "--count", "1", "-o", "value") == "a.question\n"


@pytest.mark.usefixtures("answer")
async def test_why_says_what_is_missing(moat: Moat) -> None:
    await moat.fine("run", "at", "a.question", "set", "-c", "the.answer")
    shown = await moat.fine("run", "at", "a.question", "why")
    assert shown == "it has no time; `set -t 0` starts it now\n"
    await moat.fine("run", "at", "a.question", "set", "-t", "10800")
    shown = await moat.fine("run", "at", "a.question", "why")
    assert shown.startswith("due at ")
    assert shown.endswith(", in 3 h: no runner serves any node of group default now\n")
    found = json.loads(await moat.fine("run", "at", "a.question", "why", "-o", "json"))
    assert found.keys() == {"why", "due"}
    await moat.fine("run", "-n", "pi3", "at", "b", "set", "-c", "the.answer", "-t", "0")
    shown = await moat.fine("run", "-n", "pi3", "at", "b", "why")
    assert shown.endswith(": no runner serves node pi3 of group default now\n")
    await moat.fine("run", "-n", "-", "at", "c", "set", "-c", "the.answer", "-t", "0")
    shown = await moat.fine("run", "-n", "-", "at", "c", "why")
    assert shown == "no runner has ever served it\n"
    ended = await moat("run", "at", "none", "why")
    assert ended.code == 3
