"""`moat kv run ... at PATH`: jobs as entries, and the options that say which."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import moat_kv
from moat_kv import P
from moat_kv_cli import output
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

JOB = P(":.moat.kv.run.any.default.a.question")
STATE = P(":.moat.kv.state.any.default.a.question")


@pytest.fixture
async def answer(moat: Moat) -> None:
    await moat.fine("code", "the.answer", "set", "-s", "-", stdin="return 42")


@pytest.mark.usefixtures("answer")
async def test_a_job_is_made_and_changed(moat: Moat, client: moat_kv.Client) -> None:
    before = time.time()
    assert await moat.fine("run", "at", "a.question", "set", "-c", "the.answer", "-t", "0") == ""
    job = (await client.get(JOB)).value
    assert job.pop("target") == pytest.approx(before, abs=5)
    assert job == {"code": P("the.answer")}
    options = ["-r", "10", "-k", "5", "-b", "1.5", "-d", "2.5", "-i", "why", "-t", "-"]
    await moat.fine("run", "at", "a.question", "set", *options, "-e", "x", "1", "-v", "y.z", "t")
    assert (await client.get(JOB)).value == {
        "code": P("the.answer"),
        "repeat": 10,
        "ok_after": 5,
        "backoff": 1.5,
        "delay": 2.5,
        "info": "why",
        "data": {"x": 1, "y": {"z": "t"}},
    }
    await moat.fine("run", "at", "a.question", "set", "-e", "x", "-")
    assert (await client.get(JOB)).value["data"] == {"y": {"z": "t"}}
    shown = json.loads(await moat.fine("run", "at", "a.question", "-o", "json"))
    assert shown["code"] == {"$path": "the.answer"}


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("run at j", ":.moat.kv.run.any.default.j"),
        ("run -g g1 at j", ":.moat.kv.run.any.g1.j"),
        ("run -n n1 at j", ":.moat.kv.run.at.n1.default.j"),
        ("run -n n1 -g g1 at j", ":.moat.kv.run.at.n1.g1.j"),
        ("run at -n n1 -g g1 j", ":.moat.kv.run.at.n1.g1.j"),
        ("run -n n1 at -n n1 j", ":.moat.kv.run.at.n1.default.j"),
        ("run -n - at j", ":.moat.kv.run.all.default.j"),
        ("run -g house.cellar at j", ":.moat.kv.run.any.house.cellar.j"),
        ("job -n - -g g1 at j", ":.moat.kv.run.all.g1.j"),
    ],
)
async def test_the_options_say_where_a_job_is(
    moat: Moat, client: moat_kv.Client, words: str, place: str
) -> None:
    await moat.fine(*words.split(), "set", "-c", "the.answer")
    assert (await client.get(P(place))).value["code"] == P("the.answer")
    assert await moat.fine(*words.split(), "path") == place + "\n"
    state = place.replace(".run.", ".state.")
    assert await moat.fine(*words.split(), "path", "--state") == state + "\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run -n a at -n b x", "-n is given twice, and differs: a, b"),
        ("run -n a -n - at x", "-n is given twice"),
        ("run -g a info -g b", "-g is given twice, and differs: a, b"),
        ("run -n 3 at x", "'3' is no node's name; how many nodes a group has is said with --nodes"),
        ("run at list", "'list' is a verb, and a path comes first: `moat kv run at : list`"),
        ("run at set x -c y", "the path comes before the verb: moat kv run at x set"),
        ("run at x set", "a job needs code, -c PATH"),
        ("run at : set -c y", "a job needs a path"),
        ("run at x set -t soon", "'soon' is no number of seconds"),
        ("run at x set -d -1", "-1"),
        ("run -n a all --name b", "-n a and --name b differ"),
        ("run -n - everything", "`everything` runs on one node"),
        ("run all --name 3", "'3' is no node's name"),
        ("run all --nodes 0", "0"),
        ("run all 3", "3"),
        ("run -g a..b at x", "-g: bad path 'a..b'"),
        ("run -g : at x", "-g: a group is a path below the root"),
        ("run at x set -c a..b", "bad path 'a..b'"),
        ("run at x set -e : 3 -e a 4 -c", "-c"),
    ],
)
async def test_bad_usage_of_jobs(offline: Moat, words: str, line: str) -> None:
    ended = await offline(*words.split())
    assert line in ended.error_line
    assert ended.code == 128


@pytest.mark.usefixtures("answer")
@pytest.mark.parametrize("verb", ["get", "state", "delete", "restart", "enable", "disable"])
async def test_unknown_jobs_and_nodes_are_3(moat: Moat, verb: str) -> None:
    await moat.fine("run", "at", "known.one", "set", "-c", "the.answer")
    await moat.fine("run", "-n", "n1", "at", "x", "set", "-c", "the.answer")
    ended = await moat("run", "at", "unknown", verb)
    assert ended.error_line == "moat: no job unknown for any node of group default"
    assert ended.code == 3
    ended = await moat("run", "at", "known", verb)
    assert ended.error_line.endswith("; `list` shows what is below it (1)")
    assert ended.code == 3
    ended = await moat("run", "-n", "n1", "at", "y", verb)
    assert ended.error_line == "moat: no job y for node n1 of group default"
    assert ended.code == 3
    ended = await moat("run", "-n", "n2", "at", "x", verb)
    assert ended.error_line == "moat: no job at all for node n2"
    assert ended.code == 3


async def test_a_job_without_its_code_is_stored_with_a_warning(moat: Moat) -> None:
    ended = await moat("run", "at", "x", "set", "-c", "no.code")
    assert ended.code == 0
    assert ended.error_line == "moat: there is no procedure no.code yet; the job waits for it"
    ended = await moat("run", "at", "y", "set", "-t", "0")
    assert ended.code == 128
    assert "no job y yet; say what it runs with -c PATH" in ended.error_line
    ended = await moat("run", "at", "x", "set", "-e", ":", "3")
    assert (ended.code, ended.error_line) == (
        1,
        "moat: bad value: data: a mapping from names is needed",
    )


@pytest.mark.usefixtures("answer")
async def test_times_by_the_calendar_are_set_and_taken_away(
    moat: Moat, client: moat_kv.Client
) -> None:
    before = time.time()
    options = ["--cron", "0 7 * * mon-fri", "--zone", "Europe/Berlin", "--jitter", "30"]
    options += ["--between", "06:00-09:00", "--between", "sat 10:00-11:00", "--catch-up", "skip"]
    options += ["--max-delay", "600", "--max-failures", "5", "--overlap", "queue"]
    await moat.fine("run", "at", "a.question", "set", "-c", "the.answer", "-r", "5")
    await moat.fine("run", "at", "a.question", "set", *options)
    job = (await client.get(JOB)).value
    assert before <= job.pop("target") <= time.time(), "it counts from now on"
    assert job == {
        "code": P("the.answer"),
        "cron": "0 7 * * mon-fri",
        "zone": "Europe/Berlin",
        "between": ["06:00-09:00", "sat 10:00-11:00"],
        "jitter": 30,
        "catch_up": "skip",
        "overlap": "queue",
        "max_delay": 600,
        "max_failures": 5,
    }
    (row,) = json.loads(await moat.fine("run", "at", ":", "list", "-o", "json"))
    assert row["state"] == "waiting"
    assert row["due"] > before
    options = ["--cron", "-", "--zone", "-", "--between", "-", "--max-delay", "-", "-r", "5"]
    await moat.fine("run", "at", "a.question", "set", *options)
    job = (await client.get(JOB)).value
    assert job.keys() == {
        *("code", "target", "repeat", "jitter", "catch_up", "overlap", "max_failures")
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cron", "61 * * * *"], "'61 * * * *': bad minute; five fields are needed"),
        (["--zone", "Nowhere"], "there is no time zone 'Nowhere'"),
        (["--between", "8-9"], "'8-9' is no window such as 08:00-18:00"),
        (["--max-delay", "x"], "'x' is no number of seconds"),
        (["--overlap", "never"], "'never' is not one of"),
    ],
)
async def test_wrong_times_are_bad_usage(moat: Moat, options: list[str], named: str) -> None:
    ended = await moat("run", "at", "x", "set", "-c", "the.answer", *options)
    assert ended.code == 128
    assert named in ended.error_line


@pytest.mark.usefixtures("answer")
async def test_a_jobs_process_is_set_shown_and_taken_away(
    moat: Moat, client: moat_kv.Client
) -> None:
    options = ["--isolate", "process", "--share", "bus", "--env", "PORT", "5", "--env", "X", ""]
    options += ["--limit", "memory_mb", "200", "--limit", "cpu_s", "0.5"]
    await moat.fine("run", "at", "a.question", "set", "-c", "the.answer", *options)
    asked = {
        "isolate": "process",
        "share": "bus",
        "env": {"PORT": "5", "X": ""},
        "limits": {"memory_mb": 200, "cpu_s": 0.5},
    }
    assert (await client.get(JOB)).value == {"code": P("the.answer"), **asked}
    shown = json.loads(await moat.fine("run", "at", "a.question", "-o", "json"))
    (row,) = json.loads(await moat.fine("run", "at", ":", "list", "-o", "json"))
    assert {name: shown[name] for name in asked} == {name: row[name] for name in asked} == asked
    await moat.fine("run", "at", "a.question", "set", "--env", "X", "-", "--limit", "files", "99")
    job = (await client.get(JOB)).value
    assert job["env"] == {"PORT": "5"}
    assert job["limits"] == {"memory_mb": 200, "cpu_s": 0.5, "files": 99}
    options = ["--isolate", "-", "--share", "-", "--env", "PORT", "-"]
    for name in job["limits"]:
        options += ["--limit", name, "-"]
    await moat.fine("run", "at", "a.question", "set", *options)
    assert (await client.get(JOB)).value == {"code": P("the.answer")}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--isolate", "thread"], "'thread' is not one of"),
        (["--limit", "memory", "5"], "memory: there is no such limit; there are memory_mb, cpu_s"),
        (["--limit", "memory", "-"], "memory: there is no such limit"),
        (["--limit", "memory_mb", "5"], "memory_mb: at least 32, or 0 for no limit"),
        (["--limit", "memory_mb", "much"], "memory_mb: 'much' is no number, nor -"),
        (["--limit", "cpu_s", "nan"], "cpu_s: 0 (none) or more, not nan"),
        (["--limit", "cpu_s", "inf"], "cpu_s: 0 (none) or more, not inf"),
        (["--limit", "files", "20.5"], "files: a whole number is needed, not 20.5"),
        (["--limit", "cpu_s", "1", "--limit", "cpu_s", "2"], "cpu_s is given twice"),
        (["--limit", "memory_mb", "1e300"], "memory_mb: at most 1000000000000, not 1"),
        (["--env", "A=B", "x"], "a mapping from names to texts is needed, not 'A=B': 'x'"),
        (["--require", ""], "--require: a tag is not empty"),
        (["--repeat", "5", "--cron", "* * * * *"], "--cron, --repeat: a job has one of the two"),
        (["--share", ""], "a name is needed"),
    ],
)
async def test_wrong_bounds_of_a_process_are_bad_usage(
    moat: Moat, options: list[str], named: str
) -> None:
    ended = await moat("run", "at", "x", "set", "-c", "the.answer", *options)
    assert ended.code == 128
    assert named in ended.error_line


@pytest.mark.parametrize("entry", ["text", {"code": P("the.answer"), "target": "soon"}])
async def test_a_wrong_entry_is_listed_and_named(
    moat: Moat, client: moat_kv.Client, entry: object
) -> None:
    await client.set(JOB, entry)
    state = P(":.moat.kv.state.any.default.a.question")
    await client.set(state, {"started": 1.0, "stopped": 2.0})
    (row,) = json.loads(await moat.fine("run", "at", ":", "list", "-o", "json"))
    assert row["path"] == "a.question"
    assert "its entry is wrong" in await moat.fine("run", "at", "a.question", "why")
    if not isinstance(entry, dict):
        assert row["reason"] == "a job is a mapping, not 'text'"
        ended = await moat("run", "at", "a.question", "restart")
        assert ended.code == 1
        assert "job a.question: a job is a mapping, not 'text'" in ended.error_line


async def test_a_time_that_no_calendar_bears_is_wrong(moat: Moat, client: moat_kv.Client) -> None:
    await client.set(JOB, {"code": P("the.answer"), "cron": "* * * * *", "target": 1e300})
    said = await moat.fine("run", "at", "a.question", "why")
    assert "its entry is wrong: target: seconds since 1970, -6e+10 to 2e+11, not 1e+300" in said
    await moat.fine("run", "at", ":", "list")
    await moat.fine("run", "board", "--once")


@pytest.mark.usefixtures("answer")
async def test_a_job_is_copied_without_its_time(moat: Moat, client: moat_kv.Client) -> None:
    first = ["set", "-c", "the.answer", "-t", "0", "-r", "5", "-e", "a", "1"]
    await moat.fine("run", "at", "one", *first)
    await moat.fine("run", "at", "two", "set", "-C", "one", "-e", "b", "2", "-d", "3")
    assert (await client.get(P(":.moat.kv.run.any.default.two"))).value == {
        "code": P("the.answer"),
        "repeat": 5,
        "delay": 3,
        "data": {"a": 1, "b": 2},
    }
    ended = await moat("run", "at", "two", "set", "-C", "none")
    assert (ended.code, ended.error_line) == (3, "moat: no job none")


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
