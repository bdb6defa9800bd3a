"""`moat kv run monitor` and `board`: what happens to jobs and nodes, and how all of it stands."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pty
import select
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
from rich import console

import moat_kv
from moat_kv import P, config
from moat_kv.client import results
from moat_kv.notgiven import NotGiven
from moat_kv.testing.server import running_server
from moat_kv_cli import board, happening, monitor, placement
from tests.cli import processes
from tests.cli.conftest import Moat
from tests.runner.bench import Bench, bench

pytestmark = pytest.mark.anyio

GROUP = P("default")
JOB = P(":.moat.kv.run.any.default.a.job")
STATE = P(":.moat.kv.state.any.default.a.job")
CLAIM = P(":.moat.kv.claim.any.default.a.job")


class Collected(monitor._Shown):
    """What a monitor would print."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._news = anyio.Event()

    def rows(self, rows: list[dict[str, Any]], *, is_old: bool) -> None:
        if not is_old:
            self.seen += rows
            self._news.set()
            self._news = anyio.Event()

    async def until(self, *words: str) -> list[dict[str, Any]]:
        """All that came, when these events are among it in this order; takes it away."""
        with anyio.fail_after(30):
            while not self._has(words):
                await self._news.wait()
        seen, self.seen = self.seen, []
        return seen

    def _has(self, words: tuple[str, ...]) -> bool:
        rest = iter(self.seen)
        return all(any(row["event"] == word for row in rest) for word in words)


@asynccontextmanager
async def following(
    client: moat_kv.Client, which: placement.Placement | None = None
) -> AsyncIterator[Collected]:
    shown = Collected()
    follow = monitor._Follow(client, config.Places(), GROUP, which, shown)
    async with anyio.create_task_group() as tasks:
        for each in (follow.states, follow.claims, follow.members):
            tasks.start_soon(each)
        for base, gone in ((config.Places().state, "forgotten"), (config.Places().claim, "lost")):
            probe = base + P("any.default.probe")
            number = 0
            while not shown.seen:  # what was there at first is not told
                number += 1
                await client.set(probe, {"pinged": number, "started": number, "node": "p"})
                await anyio.sleep(0.02)
            await client.delete(probe)
            with anyio.fail_after(30):
                while shown.seen[-1]["event"] not in (gone, "released"):
                    await anyio.sleep(0.02)
            shown.seen.clear()
        yield shown
        tasks.cancel_scope.cancel()


def facts_of(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row.get(name) for name in names) for row in rows]


async def test_life_of_a_job_is_told() -> None:
    async with bench() as b, following(b.desk) as shown:
        node = await b.node("n1")
        assert facts_of(await shown.until("come"), "event", "node") == [("come", "n1")]
        await b.job("return 42", path="a.job", repeat=0)
        rows = await shown.until("claimed", "released")
        assert ("claimed", "any", "a.job", "n1") in facts_of(rows, "event", "for", "path", "node")
        words = [row["event"] for row in rows]
        if "done" not in words:
            rows += await shown.until("done")
        (done,) = [row for row in rows if row["event"] == "done"]
        assert (done["result"], done["node"]) == (42, "n1")
        assert [row["event"] for row in rows].count("running") == 1
        await b.job("1/0", path="bad", max_failures=1)
        rows = await shown.until("parked")
        (parked,) = [row for row in rows if row["event"] == "parked"]
        assert parked["reason"] == "failed: ZeroDivisionError: division by zero"
        await b.job(code=P("not.there"), path="missing", kind="at")
        rows = await shown.until("waiting")
        (waiting,) = [row for row in rows if row["event"] == "waiting"]
        assert waiting["reason"] == "waiting: no procedure not.there"
        assert (waiting["for"], waiting["path"]) == ("n1", "missing")
        await b.desk.delete(P(":.moat.kv.run.any.default.a.job"))
        await shown.until("forgotten")
        await node.stop()
        assert ("gone", "n1") in facts_of(await shown.until("gone"), "event", "node")


async def test_lost_claim_is_told_apart_from_one_that_was_released(
    client: moat_kv.Client,
) -> None:
    async with following(client) as shown:
        for state, word in (
            ({"started": 2.0, "pinged": 2.0, "reason": "running", "node": "n1"}, "lost"),
            ({"started": 2.0, "stopped": 3.0, "reason": "done", "pinged": 3.0}, "released"),
            ({"started": 4.0, "reason": "its runner was stopped", "pinged": 4.0}, "released"),
        ):
            await client.set(CLAIM, {"node": "n1", "session": "s"})
            await client.set(STATE, state)
            await shown.until("claimed")
            await client.delete(CLAIM)
            rows = await shown.until(word)
            (row,) = [row for row in rows if row["event"] == word]
            assert (row["node"], row["path"], row["for"]) == ("n1", "a.job", "any")
        await client.set(CLAIM, {"node": "n1", "session": "s"})
        await shown.until("claimed")
        await client.set(CLAIM, {"node": "n2", "session": "t"})
        rows = await shown.until("lost", "claimed")
        assert facts_of(rows, "event", "node") == [("lost", "n1"), ("claimed", "n2")]


class Servers:
    """Servers on one port, one after the other."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self._over = anyio.Event()

    async def start(self, port: int = 0) -> str:
        self._scope, self._over = anyio.CancelScope(), anyio.Event()
        url: str = await self._tasks.start(self._live, port)
        return url

    async def stop(self) -> None:
        self._scope.cancel()
        await self._over.wait()

    async def _live(self, port: int, *, task_status: anyio.abc.TaskStatus[str]) -> None:
        scope, over = self._scope, self._over
        try:
            with scope:
                async with running_server(tcp=True, port=port) as running:
                    task_status.started(running.url)
                    await anyio.sleep_forever()
        finally:
            over.set()


async def test_monitor_lives_on_when_the_server_comes_back_as_another() -> None:
    async with anyio.create_task_group() as tasks:
        servers = Servers(tasks)
        url = await servers.start()
        async with moat_kv.open_client(url) as client, following(client) as shown:
            await client.set(STATE, {"started": 3.0, "stopped": 4.0, "pinged": 4.0})
            rows = await shown.until("done")
            assert facts_of(rows, "event", "started") == [("running", 3.0), ("done", 3.0)]
            await servers.stop()
            await servers.start(int(url.rpartition(":")[2]))
            rows = await shown.until("forgotten")
            assert facts_of(rows, "event", "path") == [("forgotten", "a.job")]
            await client.set(STATE, {"started": 5.0, "reason": "running", "pinged": 5.0})
            assert len(await shown.until("running")) == 1
        await servers.stop()


async def test_printed_events_are_lines_of_json_and_can_be_counted(
    moat: Moat, client: moat_kv.Client
) -> None:
    await client.set(STATE, {"started": 1.0, "stopped": 2.0, "result": 1, "pinged": 2.0})
    await client.set(CLAIM, {"node": "n1", "session": "s"})
    rows = [
        json.loads(line)
        for line in (await moat.fine("run", "monitor", "-f", "--count", "2")).splitlines()
    ]
    assert {row["event"] for row in rows} == {"done", "claimed"}
    assert all(abs(row["at"] - time.time()) < 60 for row in rows)
    line = await moat.fine("run", "monitor", "-f", "--count", "1", "-o", "value")
    assert line == "a.job\n"


def member(*roles: str) -> results.MemberInfo:
    return results.MemberInfo(roles=roles, info=None)


def test_members_that_come_and_go_are_told() -> None:
    before, after = {"a": member("any"), "b": member("any")}, {"b": member("at"), "c": member("x")}
    rows = happening.member_rows(before, after, 7.0)
    assert facts_of(rows, "event", "node", "at") == [("gone", "a", 7.0), ("come", "c", 7.0)]


ANY = placement.Placement(node=None, group=GROUP)
AT = placement.Placement(node="n1", group=GROUP)


@pytest.mark.parametrize(
    ("text", "which", "found"),
    [
        ("any.default.x.y", None, ("any", None, "x.y")),
        ("any.default.x.y", AT, None),
        ("any.other.x", None, None),
        ("at.n1.default.x", None, ("at", "n1", "x")),
        ("at.n1.default.x", ANY, None),
        ("at.n1.default.x", AT, ("at", "n1", "x")),
        ("at.n2.default.x", AT, None),
        ("all.default.n1.x", None, ("all", "n1", "x")),
        ("all.default.n1", None, None),
        ("any.default", None, None),
        ("odd.default.x", None, None),
        (":", None, None),
    ],
)
def test_entries_are_told_by_their_jobs(
    text: str, which: placement.Placement | None, found: tuple[str, str | None, str] | None
) -> None:
    place = happening.place_of(P(text), GROUP, which)
    assert (place and (place.kind, place.node, str(place.path))) == found


def event(path: str, value: Any = NotGiven) -> Any:
    made = results.WatchEvent(7, "e")
    made.path, made.at = P(path), 5.0
    if value is not NotGiven:
        made.value = value
    return made


def test_only_what_is_another_after_a_reset_is_told() -> None:
    seen = happening.Seen()
    assert [each.is_old for each in seen.take(event("a", 1))] == [True]
    for name in ("b", "c"):
        assert len(seen.take(event(name, 1))) == 1
    assert seen.take(results.Ready()) == []
    assert seen.take(event("x")) == []
    assert [(each.before, each.is_old) for each in seen.take(event("a", 2))] == [(1, False)]
    assert seen.take(results.Reset(reason="r")) == []
    assert seen.take(event("a", 2)) == []
    assert [each.after for each in seen.take(event("b", 2))] == [2]
    (gone,) = seen.take(results.Ready())
    assert (str(gone.path), gone.before, gone.after) == ("c", 1, NotGiven)


# The board ---------------------------------------------------------------------------------------


async def _some_jobs(b: Bench) -> None:
    await b.job("return 'fine'", path="ends")
    await b.job("raise ValueError('no bus')", path="fails")
    await b.job("import anyio\nawait anyio.sleep_forever()", path="stays", kind="at")
    await b.job("return 1", path="each", kind="all")
    await b.job("return 1", path="later", target=1000.0)
    for path, kind in (("ends", "any"), ("fails", "any"), ("each", "all")):
        await b.state(path=path, kind=kind)
    await b.state(lambda state: state.running, path="stays", kind="at")


async def test_board_shows_nodes_and_all_kinds_of_jobs(
    moat: Moat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench("n1") as b:
        await _some_jobs(b)
        monkeypatch.setenv("MOAT_KV_URL", b.server.url)
        shown = json.loads(await moat.fine("run", "board", "-o", "json"))
        assert shown["group"] == "default"
        (node,) = shown["nodes"]
        assert node.items() >= {"node": "n1", "jobs": 1, "state": "here", "weight": 1.0}.items()
        assert 0 <= node["load"] <= 1
        jobs = {row["path"]: row for row in shown["jobs"]}
        assert {path: (row["for"], row["state"]) for path, row in jobs.items()} == {
            "each": ("all", "done"),
            "ends": ("any", "done"),
            "fails": ("any", "failed"),
            "later": ("any", "waiting"),
            "stays": ("n1", "running"),
        }
        assert jobs["fails"]["due"] > time.time()
        text = await moat.fine("run", "board")
        lines = {line.split()[0]: line for line in text.splitlines() if line}
        assert "[]" not in lines["n1"]
        assert lines["ends"].endswith("  fine")
        assert lines["fails"].endswith("ValueError: no bus")
        assert text == await moat.fine("run", "board", "--once")
        only = json.loads(await moat.fine("run", "-n", "n1", "board", "-o", "json"))
        assert [row["path"] for row in only["jobs"]] == ["stays"]


async def test_board_is_drawn_anew_when_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "DRAW_S", 0.05)
    async with bench("n1") as b:
        await _some_jobs(b)
        written = io.StringIO()
        screen = console.Console(file=written, force_terminal=True, width=200, height=40)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(board.live, b.desk, GROUP, None, screen)
            await _until(lambda: "stays" in written.getvalue())
            await b.job("return 'something new'", path="newcomer")
            await _until(lambda: "something new" in written.getvalue())
            tasks.cancel_scope.cancel()
        assert "\x1b[?1049l" in written.getvalue()


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not holds():
            await anyio.sleep(0.02)


def test_drawing_fits_the_terminal_and_obeys_no_script() -> None:
    jobs = [
        {"path": f"job.n{number}", "for": "any", "state": "failed", "reason": "failed: \x1b[31mred"}
        for number in range(50)
    ]
    nodes = [{"node": "n1", "state": "gone"}]
    picture = board.Picture(group=GROUP, jobs=jobs, nodes=nodes, parted=True)
    written = io.StringIO()
    screen = console.Console(file=written, width=100)
    screen.print(board.drawn(picture, time.time(), 20))
    text = written.getvalue()
    assert len(text.splitlines()) <= 20
    assert "and 40 more; --once shows all" in text
    assert "this server is cut off" in text
    assert "no line to the server since" in text
    assert "\x1b[31m" not in text
    assert "\\u001b[31mred" in text


def test_live_board_leaves_the_terminal_as_it_was(tmp_path: pathlib.Path) -> None:
    with processes.server(tmp_path):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*processes.MOAT, "run", "board"],
            env=processes.environment(tmp_path, TERM="xterm", COLUMNS="100", LINES="30"),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        seen = b""
        try:
            seen = _read(ours, lambda data: b"group default" in data)
            process.send_signal(signal.SIGINT)
            seen += _read(ours, lambda data: False)
            assert process.wait(30) == 130
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    assert b"\x1b[?1049h" in seen
    assert b"\x1b[?1049l" in seen
    assert b"Traceback" not in seen


def _read(fd: int, enough: Callable[[bytes], bool]) -> bytes:
    data, give_up_at = b"", time.monotonic() + 30
    while not enough(data):
        ready, _, _ = select.select([fd], [], [], max(0, give_up_at - time.monotonic()))
        assert ready, data
        try:
            more = os.read(fd, 4096)
        except OSError:  # its other end is closed
            break
        if not more:
            break
        data += more
    return data
