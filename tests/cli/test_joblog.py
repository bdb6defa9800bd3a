"""`moat kv run at PATH log` and `runs`: what runs have left on their nodes, read from any desk."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

import moat_kv
from moat_kv import P
from moat_kv.config import Config, RunnerConfig
from moat_kv_runner import commands, runner
from moat_kv_runner.children import child_process
from moat_kv_runner.kept import asking, files, questions, recorder
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine is no reason to give up what a test waits for."""
    monkeypatch.setattr(asking, "LIMIT_S", 30.0)
    monkeypatch.setattr(recorder, "ANSWER_S", 25.0)
    monkeypatch.setattr(recorder, "CLOSE_S", 30.0)
    monkeypatch.setattr(child_process, "DRAIN_S", 30.0)


SAYING = """
import os, sys
print("printed")
print("to errors", file=sys.stderr)
os.write(1, b"\\x1b[31mnot utf-8: \\xff\\x9b\\n")
_log.info("said %s", 1)
_log.warning("two\\nlines")
print("x" * 20000)
"""


class Nodes:
    """Runners in the test's process; each may be ended."""

    def __init__(self, url: str, tasks: anyio.abc.TaskGroup) -> None:
        self._url = url
        self._tasks = tasks
        self._scopes: dict[str, tuple[anyio.CancelScope, anyio.Event]] = {}

    async def start(self, name: str, **settings: Any) -> None:
        await self._tasks.start(self._live, name, RunnerConfig(**settings))

    async def stop(self, name: str) -> None:
        scope, over = self._scopes[name]
        scope.cancel()
        await over.wait()

    async def _live(
        self, name: str, settings: RunnerConfig, *, task_status: anyio.abc.TaskStatus[str]
    ) -> None:
        scope, over = self._scopes[name] = (anyio.CancelScope(), anyio.Event())
        opened = moat_kv.open_client(self._url, name=name, config=Config(runner=settings))
        try:
            with scope:
                async with opened as client:
                    await runner.run(client, name=name, task_status=task_status)
        finally:
            over.set()


@asynccontextmanager
async def nodes(moat: Moat, *names: str) -> AsyncIterator[Nodes]:
    async with anyio.create_task_group() as tasks:
        made = Nodes(moat.url, tasks)
        for name in names:
            await made.start(name)
        yield made
        tasks.cancel_scope.cancel()


async def job(moat: Moat, code: str, *words: str, path: str = "talker", kind: str = "-a") -> None:
    await moat.fine("code", path, "set", kind, "-s", "-", stdin=code)
    await moat.fine("run", *words, "at", path, "set", "-c", path, "-t", "0")


async def ended(moat: Moat, *words: str, path: str = "talker", count: int = 1) -> list[Any]:
    """The runs when so many are over."""
    with anyio.fail_after(30):
        while True:
            shown = await moat("run", *words, "at", path, "runs", "-o", "jsonl")
            assert shown.code == 0, shown
            # Jobs may print beside it, whatever they like.
            lines = [line for line in shown.out.splitlines() if line.startswith('{"')]
            rows = [json.loads(line) for line in lines]
            if sum(row["outcome"] != "running" for row in rows) >= count:
                return rows
            await anyio.sleep(0.1)


async def in_process(moat: Moat) -> None:
    await moat.fine("data", ":.moat.kv.run.any.default", "set", "-v", "defaults.isolate", "process")


async def test_output_of_a_child_is_read_at_the_desk(moat: Moat) -> None:
    await in_process(moat)
    async with nodes(moat, "n1"):
        await job(moat, SAYING, kind="-A")
        await ended(moat)
        rows = [
            json.loads(line)
            for line in (await moat.fine("run", "at", "talker", "log", "-o", "jsonl")).splitlines()
        ]
        by_stream: dict[str, list[Any]] = {}
        for row in rows:
            assert (row["run"], row["node"]) == (1, "n1")
            assert abs(row["at"] - time.time()) < 60
            by_stream.setdefault(row["stream"], []).append((row["level"], row["text"]))
        assert by_stream["err"] == [(None, "to errors")]
        assert by_stream["log"] == [(20, "said 1"), (30, "two\nlines")]
        assert by_stream["out"][:2] == [
            (None, "printed"),
            (None, "\x1b[31mnot utf-8: \\xff\\x9b"),
        ]
        assert 8000 < len(by_stream["out"][2][1]) < 8200
        text = await moat.fine("run", "at", "talker", "log", "--lines", "10")
        assert "\x1b" not in text
        assert "  #1  out      \\x1b[31mnot utf-8" in text
        assert "  #1  warning  two\n    lines\n" in text
        last = await moat.fine("run", "at", "talker", "log", "--lines", "2", "-o", "jsonl")
        assert last.splitlines() == [json.dumps(row, separators=(",", ":")) for row in rows[-2:]]
        assert await moat.fine("run", "at", "talker", "log", "--lines", "0") == ""
        await job(moat, "return 1", path="silent")
        await ended(moat, path="silent")
        assert await moat.fine("run", "at", "silent", "log") == "no lines\n"
        assert await moat.fine("run", "at", "silent", "log", "-o", "jsonl") == ""


async def test_log_of_an_inline_job_is_kept_and_its_prints_are_not(moat: Moat) -> None:
    await moat.fine("data", ":.moat.kv.run.any.default", "set", "-v", "defaults.isolate", "inline")
    async with nodes(moat, "n1"):
        await job(moat, "print('printed')\n_log.info('said')\nreturn {'a': b'1'}")
        (run,) = await ended(moat)
        assert run["outcome"] == "done"
        assert run["result"] == {"a": {"$bytes": "MQ=="}}
        assert run["took_s"] >= 0
        assert run["fence"] > 0
        assert await moat.fine("run", "at", "talker", "log", "-o", "value") == "said\n"
        await job(moat, "_log.warning('in a thread')\n1/0", path="worker", kind="-t")
        (run,) = await ended(moat, path="worker")
        assert (run["outcome"], run["error"]) == ("failed", "ZeroDivisionError: division by zero")
        assert "in a thread" in await moat.fine("run", "at", "worker", "log")
        shown = await moat.fine("run", "at", "worker", "runs")
        assert "failed" in shown
        assert "ZeroDivisionError: division by zero" in shown


async def test_runs_of_both_nodes_are_seen_after_a_take_over(moat: Moat) -> None:
    text = "import anyio\n_log.info('on %s', _self.node)\nawait anyio.sleep_forever()"
    async with nodes(moat, "n1") as there:
        await job(moat, text)
        await moat.fine("run", "at", "talker", "log", "-f", "--count", "1")
        await there.start("n2")
        await moat.fine("run", "drain", "n1")
        out = await moat.fine("run", "at", "talker", "log", "-f", "--count", "2")
        assert [line.split()[-1] for line in out.splitlines()] == ["n1", "n2"]
        rows = await ended(moat)
        assert [(row["node"], row["run"], row["outcome"]) for row in rows] == [
            ("n2", 1, "running"),
            ("n1", 1, "moved"),
        ]
        both = await moat("run", "at", "talker", "log", "--run", "1")
        assert both.code == 128
        assert "there is a run 1 on each of n1, n2; say which with -n" in both.error_line
        args = ("run", "at", "talker", "log", "-o", "value")
        assert await moat.fine(*args, "--run", "1", "-n", "n1") == "on n1\n"
        assert await moat.fine(*args, "--run", "-1") == "on n2\n"
        assert await moat.fine(*args, "--run", "-2") == "on n1\n"
        assert await moat.fine(*args, "-n", "n2") == "on n2\n"
        await there.stop("n1")
        gone = await moat(*args, "-n", "n1")
        assert gone.code == 3
        assert gone.error_line == (
            "moat: no runner n1 of group default now; "
            "what runs of talker have left is on their nodes"
        )
        rows = await ended(moat, count=0)
        assert [row["node"] for row in rows] == ["n2"]
        await there.start("n1")
        rows = await ended(moat)
        assert [(row["node"], row["outcome"]) for row in rows] == [
            ("n2", "running"),
            ("n1", "moved"),
        ]


async def test_following_goes_on_over_runs_and_their_ends(
    moat: Moat, client: moat_kv.Client
) -> None:
    place = P(":.moat.kv.run.all.default")
    await client.set(place, {"defaults": {"isolate": "inline"}})
    async with nodes(moat, "n1") as there, anyio.create_task_group() as tasks:
        await job(moat, "_log.info('run')\nreturn n", "-n", "-")
        await moat.fine("run", "-n", "-", "at", "talker", "set", "-e", "n", "1")
        await ended(moat, "-n", "-")
        await there.start("n2")

        async def again() -> None:
            while True:
                await anyio.sleep(0.5)
                await commands.change(client, place / "talker", restart=time.time())

        tasks.start_soon(again)
        words = ("run", "-n", "-", "at", "talker", "log", "-f", "--count", "6", "-o", "jsonl")
        rows = await _followed(moat, *words)
        tasks.cancel_scope.cancel()
        assert {row["node"] for row in rows} == {"n1", "n2"}
        assert len({(row["node"], row["run"]) for row in rows}) == 6


async def _followed(moat: Moat, *words: str) -> list[Any]:
    with anyio.fail_after(30):
        done = await moat(*words)
    return [json.loads(line) for line in done.out.splitlines()]


async def test_desk_is_told_what_cannot_be_had(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    await moat.fine("code", "talker", "set", "-s", "-", stdin="return 1")
    await moat.fine("run", "at", "talker", "set", "-c", "talker", "-t", "0")
    for verb in ("log", "runs"):
        nobody = await moat("run", "at", "talker", verb)
        assert nobody.code == 3
        assert "no runner for any node of group default now" in nobody.error_line
        unknown = await moat("run", "at", "unknown", verb)
        assert unknown.error_line == "moat: no job unknown for any node of group default"
    await moat.fine("run", "-n", "n1", "at", "talker", "set", "-c", "talker", "-t", "0")
    async with nodes(moat, "n1") as there:
        await ended(moat)
        assert await moat.fine("run", "-n", "n1", "at", "talker", "log", "-n", "n1") == "no lines\n"
        other = await moat("run", "-n", "n1", "at", "talker", "log", "-n", "n2")
        assert other.code == 128
        assert "the job is for node n1 alone" in other.error_line
        none = await moat("run", "at", "talker", "log", "--run", "7")
        assert (none.code, none.error_line) == (
            3,
            "moat: no run 7; `runs` shows which there are",
        )
        assert (await moat("run", "at", "talker", "log", "--run", "0")).code == 128
        await there.start("n3", logs_mb=0.0)
        part = await moat("run", "at", "talker", "runs")
        assert part.code == 0
        assert part.error_line == (
            "moat: n3: the runner's settings say that nothing is to be kept: runner.logs_mb"
        )
        await there.stop("n1")
        part = await moat("run", "at", "talker", "log")
        assert part.code == 1
        assert part.err.endswith("moat: none of its nodes can say what it has left\n")


async def test_silent_node_is_named(moat: Moat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LIMIT_S", 2.0)
    async with nodes(moat, "n1"):
        await job(moat, "return 1")
        await ended(moat)
        async with moat_kv.open_client(moat.url) as client, client.session() as session:
            group = P(":.moat.kv.group.default")
            await client.join(group, "n2", session=session, role="any")
            shown = await moat("run", "at", "talker", "runs")
            assert shown.code == 0
            assert "no answer from n2 within 2 s; what ran there is not shown" in shown.error_line
            assert shown.out.count("\n") == 2


async def test_deleted_job_leaves_nothing_behind(moat: Moat, tmp_path: pathlib.Path) -> None:
    def left() -> set[str]:
        return {each.name for each in (tmp_path / "state").rglob("*") if each.is_dir()}

    async with nodes(moat, "n1") as there:
        for path in ("talker", "other"):
            await job(moat, "_log.warning('x')", path=path)
            await ended(moat, path=path)
        await moat.fine("run", "at", "talker", "delete")
        await _until(lambda: "talker" not in left())
        assert "other" in left()
        await there.stop("n1")
        await moat.fine("run", "at", "other", "delete")
        await there.start("n1")
        await _until(lambda: "other" not in left())


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not holds():
            await anyio.sleep(0.02)


BAD = [None, 1, {}, {"token": 1}, {"token": "t", "number": 1, "what": "x"}]
RIGHT: dict[str, Any] = {
    "token": "t",
    "number": 1,
    "what": "lines",
    "kind": "any",
    "path": P("a"),
}


def test_only_questions_are_questions() -> None:
    assert questions.parse({**RIGHT, "newer": 1}) == questions.Question(**RIGHT)
    placed = questions.parse({**RIGHT, "after": {"n1": [1, 2]}})
    assert placed is not None
    assert placed.after == {"n1": (1, 2)}
    wrong = [
        {**RIGHT, name: value}
        for name, value in [
            ("after", 1),
            ("after", {"n1": [1]}),
            ("after", {"n1": [1, -1]}),
            ("after", {"n1": ["a", "b"]}),
            ("count", -1),
            ("count", 1_000_000),
            ("count", True),
            ("run", "1"),
            ("since", "now"),
            ("path", "a"),
            ("what", "files"),
            ("kind", None),
            ("node", 1),
        ]
    ]
    assert [each for each in BAD + wrong if questions.parse(each) is not None] == []


async def test_nonsense_does_not_end_the_answers(
    moat: Moat, client: moat_kv.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(moat, "n1"):
        await job(moat, "_log.info('here')")
        await ended(moat)
        topic = P(":.moat.kv.group.default.ask")
        for value in [*BAD, {**RIGHT, "path": P("no.such")}, {**RIGHT, "kind": "other"}]:
            await client.send(topic, value)
        await client.send(topic, raw=b"\xc1")
        assert "here" in await moat.fine("run", "at", "talker", "log")
        monkeypatch.setattr(recorder, "ANSWER_S", 0.1)
        monkeypatch.setattr(files.JobFiles, "tail", lambda *args, **options: time.sleep(1))
        slow = await moat("run", "at", "talker", "log")
        assert "n1: what runs have left cannot be read: it takes too long" in slow.err
