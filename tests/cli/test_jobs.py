"""`moat kv run ... at PATH`: jobs as entries, and the options that say which."""

from __future__ import annotations

import json
import time

import pytest

import moat_kv
from moat_kv import P
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

JOB = P(":.moat.kv.run.any.default.a.question")


@pytest.mark.usefixtures("answer")
async def test_a_job_is_made_and_changed(moat: Moat, client: moat_kv.Client) -> None:
    before = time.time()
    assert await moat.fine("run", "at", "a.question", "set", "-c", "the.answer", "-t", "0") == ""
    job = (await client.get(JOB)).value
    assert before <= job.pop("target") <= time.time()
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
