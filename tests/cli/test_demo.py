"""`./dev demo`: it shows what it must, leaves nothing behind, and says what it did not see."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import anyio
import pytest

import moat_kv
from moat_kv import P, Path, config
from moat_kv_cli.demo import findings, network, seen
from tests.cli.conftest import Moat
from tests.cli.processes import environment

DEMO = [sys.executable, "-m", "moat_kv_cli.demo", "--bus", "simulated"]


def start(tmp_path: pathlib.Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEMO, *words],
        env=environment(tmp_path, TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def processes_in(folder: pathlib.Path) -> list[str]:
    """The commands of processes that use the demonstration's folder."""
    found = []
    for each in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MOAT_KV_CONFIG={folder}" in each.read_text(errors="replace"):
                found.append((each.parent / "cmdline").read_text())
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.timeout(120)
def test_the_demonstration_shows_all_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    process = start(tmp_path)
    out, err = process.communicate(timeout=70)
    assert time.monotonic() - began < 60
    assert (process.returncode, err) == (0, "")
    for text in (
        r"job demo\.read_one \(one node\) on \w+: done",
        r"job demo\.load \(all nodes\) on alpha: running",
        r"job demo\.load \(all nodes\) on beta: running",
        r"group's state: complete",
        r"killing (alpha|beta) \(kill -9 \d+\)",
        r"group's state: detached",
        r"ok +move +demo\.radio ran on (alpha|beta) \(fence \d+\), then (alpha|beta) \(fence \d+\)",
        r"ok +fall +the group was (detached, then |partial, then )?complete, then detached",
        r"demo: all was seen\n$",
    ):
        assert re.search(text, out), f"{text}\n{out}"
    assert "FAILED" not in out
    assert processes_in(tmp_path) == []
    assert not list(tmp_path.glob("moat-kv-demo-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)], ids=["INT", "TERM"]
)
def test_interrupted_it_ends_its_children(
    tmp_path: pathlib.Path, number: signal.Signals, code: int
) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    while "nodes: alpha, beta" not in process.stdout.readline():
        assert process.poll() is None
    assert len(processes_in(tmp_path)) >= 4
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert processes_in(tmp_path) == []
    assert not list(tmp_path.glob("moat-kv-demo-*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_child_that_ends_by_itself_is_told(tmp_path: pathlib.Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    while "nodes: alpha, beta" not in process.stdout.readline():
        assert process.poll() is None
    server = next(
        int(each.parent.name)
        for each in pathlib.Path("/proc").glob("[0-9]*/environ")
        if each.parent.name != str(os.getpid())
        and f"MOAT_KV_CONFIG={tmp_path}" in _read(each)
        and "\0server\0" in _read(each.parent / "cmdline")
    )
    os.kill(server, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "server ended by itself" in err
    assert processes_in(tmp_path) == []


def _read(file: pathlib.Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


@pytest.mark.anyio
async def test_of_an_empty_tree_nothing_was_seen(moat: Moat, client: moat_kv.Client) -> None:
    found = await findings.read_back(client, ["alpha", "beta"], None)
    assert [each.name for each in found if each.good] == []
    assert len({each.name for each in found}) == 6


async def play(client: moat_kv.Client) -> None:
    """What a good run leaves in the tree."""
    await client.set(seen.TEMPERATURES / "28" / "1", {"value": 21.0, "at": 1})
    state = P(":.moat.kv.state")
    await client.set(state + P("at.beta.default") + seen.READ_JOB, {"result": 21.0})
    for node in ("alpha", "beta"):
        await client.set(seen.LOAD / node, {"load": [0, 0, 0]})
    radio = state + P("any.default") + seen.RADIO_JOB
    await client.set(seen.GROUP, {"state": "complete"})
    await client.set(radio, {"node": "alpha", "fence": 5})
    await client.set(radio, {"node": "beta", "fence": 9})
    await client.set(seen.RADIO, {"node": "beta", "fence": 9, "count": 3})
    await client.set(seen.GROUP, {"state": "detached"})


@pytest.mark.anyio
async def test_a_good_run_is_found_good(moat: Moat, client: moat_kv.Client) -> None:
    await play(client)
    found = await findings.read_back(client, ["alpha", "beta"], "alpha")
    assert [(each.name, each.good) for each in found] == [
        ("bus", True),
        ("single-node job", True),
        ("any-node job", True),
        ("all-node job", True),
        ("move", True),
        ("fall", True),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "value", "bad"),
    [
        pytest.param(seen.TEMPERATURES / "28" / "1", {}, "bus", id="no reading"),
        pytest.param(seen.LOAD / "beta", None, "all-node job", id="one node alone"),
        pytest.param(seen.RADIO, {"node": "alpha", "fence": 5, "count": 9}, "move", id="stale"),
        pytest.param(seen.RADIO, {"node": "beta", "fence": 9, "count": 0}, "move", id="no work"),
    ],
)
async def test_what_is_missing_is_found(
    moat: Moat, client: moat_kv.Client, path: moat_kv.Path, value: object, bad: str
) -> None:
    await play(client)
    if value is None:
        await client.delete(path)
    else:
        await client.set(path, value)
    found = await findings.read_back(client, ["alpha", "beta"], "alpha")
    assert bad in [each.name for each in found if not each.good]


@pytest.mark.anyio
async def test_a_group_that_never_was_complete_did_not_fall(
    moat: Moat, client: moat_kv.Client
) -> None:
    for state in ("detached", "partial", "detached"):
        await client.set(seen.GROUP, {"state": state})
    found = {
        each.name: each for each in await findings.read_back(client, ["alpha", "beta"], "alpha")
    }
    assert not found["fall"].good
    assert found["fall"].text == "the group was detached, then partial, then detached"


@pytest.mark.anyio
async def test_what_is_begun_anew_now_and_then_is_none_that_lasts(
    moat: Moat, client: moat_kv.Client
) -> None:
    begun = {"node": "beta", "fence": 7, "started": 1.0}
    lasting, repeated = P("all.default.beta") + seen.LOAD_JOB, P("at.beta.default") + seen.READ_JOB
    for state in (lasting, repeated):
        await client.set(config.Places().state + state, begun)
    job = {"code": P("x"), "target": 0}
    await client.set(config.Places().run + P("all.default") + seen.LOAD_JOB, job)
    await client.set(config.Places().run + repeated, {**job, "repeat": 5})
    watched = seen.Seen(client, config.Places())
    async with anyio.create_task_group() as tasks:
        await tasks.start(watched.follow)
        assert watched.runs("beta") == {lasting: ("beta", 7, 1.0)}
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_copy_of_the_tree_says_what_jobs_do(moat: Moat, client: moat_kv.Client) -> None:
    await play(client)
    await client.set(P(":.moat.kv.run.any.default") + seen.RADIO_JOB, {"code": P("x"), "target": 0})
    watched = seen.Seen(client, config.Places())
    async with anyio.create_task_group() as tasks:
        await tasks.start(watched.follow)
        jobs = watched.job("any", seen.RADIO_JOB)
        assert [(each.node, each.word) for each in jobs] == [("beta", "waiting")]
        assert watched.sensors == {"28.1": "21.00 °C"}
        assert watched.group_state == "detached"
        await client.set(seen.GROUP, {"state": "complete"})
        until = anyio.current_time() + 10
        assert await watched.until(lambda: watched.group_state == "complete", until)
        tasks.cancel_scope.cancel()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.timeout(120)
def test_with_three_servers_it_survives_one_of_them(tmp_path: pathlib.Path) -> None:
    process = start(tmp_path, "--cluster")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    for text in (
        r"servers: (tcp://127\.0\.0\.1:\d+ ?){3}, ",
        r"killing s1, to which all are connected \(kill -9 \d+\)",
        r"ok +move +demo\.radio ran on (alpha|beta) \(fence \d+\), then (alpha|beta) \(fence \d+\)",
        r"ok +fail-over +after s1, the server, was killed, (alpha|beta) went on with all of its "
        r"[3-9] jobs, none was restarted",
        r"demo: all was seen\n$",
    ):
        assert re.search(text, out), f"{text}\n{out}"
    assert processes_in(tmp_path) == []
    assert not list(tmp_path.glob("moat-kv-demo-*"))


def polls(*, fence: int = 5, count: int = 10, began: float = 1.0, jobs: int = 2) -> network.Polls:
    runs = {Path("at", f"job{number}"): ("beta", 7, began) for number in range(jobs)}
    return network.Polls(node="beta", fence=fence, count=count, runs=runs)


def test_a_fail_over_without_a_restart_is_found_good() -> None:
    found = network.finding("s1", polls(), polls(count=20))
    assert found.good
    assert found.text == (
        "after s1, the server, was killed, beta went on with all of its 2 jobs, "
        "none was restarted (polls: fence 5, 10 to 20)"
    )


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (polls(fence=9, count=3), "started anew: the polls"),
        (polls(count=20, began=2.0), "started anew: at.job0, at.job1"),
        (polls(count=20, jobs=1), "started anew: at.job1"),
        (None, "nobody polled"),
    ],
    ids=["polls anew", "all anew", "one is gone", "no polls"],
)
def test_a_fail_over_with_a_restart_is_found_bad(after: network.Polls | None, says: str) -> None:
    found = network.finding("s1", polls(), after)
    assert not found.good
    assert says in found.text


def test_what_was_not_tried_or_had_no_jobs_is_not_good() -> None:
    assert not network.finding(None, None, None).good
    assert not network.finding("s1", polls(jobs=0), polls(jobs=0, count=20)).good
