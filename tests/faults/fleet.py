"""Real runner processes and a job whose every act leaves a trace, for `kill_runner` and its kin.

The job counts: each step sets the counter by compare-and-set and adds a line to the log, in one
batch under the job's fence. Beside that it notes each step in a file of this machine, by the clock
that all its processes share, as if it had moved hardware. `Trace` reads both and finds what must
not be: steps lost, or two runners at work at the same time. Only processes that were started here
are touched.
"""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any

import anyio
import anyio.to_thread

from moat_kv import Client, P, Path
from moat_kv.code import CodeRoot
from moat_kv.config import Places
from moat_kv_runner import commands
from tests.faults import serving

_ROOT = pathlib.Path(__file__).parents[2]
#: A runner that is not ready by then never will be, in seconds. It may wait for its name.
START_LIMIT_S = 40.0
END_LIMIT_S = 30.0

GROUP = Path("default")
JOB = Path("counter")
COUNT = P("fault.count")
LOG = P("fault.log")
#: Between two steps of the job, in seconds.
STEP_S = 0.02

#: The counting job. A stubborn one heeds its cancellation only after so many seconds; an unfenced
#: one does not even heed its fence: what the checks must find.
COUNTER = """
import time, anyio
from moat_kv import errors, open_client

def note(what):
    with open(notes, "a") as file:
        file.write(f"{what} {_self.fence} {_self.node} {time.monotonic()}\\n")

async def step(client):
    seen = await client.get(_P("fault.count"))
    n = seen.get("value", 0) + 1
    line = {"node": _self.node, "fence": _self.fence}
    await client.batch([
        client.op_set(_P("fault.count"), n, expect=seen.rev),
        client.op_set(_P("fault.log") / n, line),
    ])
    note(f"step {n}")

async def steps(client):
    while True:
        try:
            await step(client)
        except (errors.Disconnected, errors.Unknown) as exc:
            note(f"{type(exc).__name__} -")
        except errors.Conflict:
            pass
        except Exception as exc:
            note(f"{type(exc).__name__} -")
            raise
        await anyio.sleep(step_s)

note("begin -")
with anyio.move_on_after(stubborn_s or None, shield=bool(stubborn_s)):
    if unfenced:
        async with open_client(url) as client:
            await steps(client)
    else:
        await steps(_client)
"""


class RunnerProcess:
    """`moat kv run everything --name NAME`, or the next one of that name."""

    def __init__(
        self, name: str, url: str, folder: pathlib.Path, *, config: pathlib.Path | None = None
    ) -> None:
        self.name = name
        self.url = url
        self.config = config
        self.log = folder / f"{name}.txt"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        """What it prints after it was ready."""
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout

    async def start(self) -> float:
        """Start it and wait until jobs run; how long that took, in seconds.

        Raises RuntimeError with what it said if it ends before.
        """
        assert self._process is None
        began = time.monotonic()
        command = [sys.executable, "-m", "moat_kv_cli", "kv", "--url", self.url]
        command += ["run", "everything", "--name", self.name]
        self._process = self._spawn(command)
        assert self._process.stdout is not None
        line = b""
        with anyio.move_on_after(START_LIMIT_S):
            line = await anyio.to_thread.run_sync(
                self._process.stdout.readline, abandon_on_cancel=True
            )
        if b" is ready" not in line:
            await self.kill()
            raise RuntimeError(f"{self.name} did not start: {self.log.read_text()[-2000:]}")
        return time.monotonic() - began

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=_ROOT,
                env=serving.environment(self.config)
                | {"XDG_STATE_HOME": str(self.log.parent / "state")},
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL: nothing of it runs any further."""
        self.signal(signal.SIGKILL)
        await self._wait()

    async def stop(self) -> tuple[int, float]:
        """SIGTERM; its exit code, and how long it took, in seconds."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        code = await self._wait()
        return code, time.monotonic() - began

    async def _wait(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        codes: list[int] = []
        with anyio.CancelScope(shield=True):
            codes.append(await anyio.to_thread.run_sync(process.wait, END_LIMIT_S))
        if process.stdout is not None:
            process.stdout.close()
        return codes[0]

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """It does not run meanwhile, though its sockets stay open."""
        self.signal(signal.SIGSTOP)
        await serving.until_stopped(self.pid)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)


@asynccontextmanager
async def fleet(
    urls: Mapping[str, str], folder: pathlib.Path, *, settings: Mapping[str, Any] | None = None
) -> AsyncIterator[dict[str, RunnerProcess]]:
    """Runners by name, each with a server's URL, ready; what lives at the end is killed.

    `settings`: what their configuration file says.
    """
    config = folder / "runners.yaml"
    # (YAML reads JSON.)
    config.write_text(json.dumps(settings or {}) + "\n")
    runners = {name: RunnerProcess(name, url, folder, config=config) for name, url in urls.items()}
    async with AsyncExitStack() as stack:
        for runner in runners.values():
            stack.push_async_callback(_end, runner)
        async with anyio.create_task_group() as tasks:
            for runner in runners.values():
                tasks.start_soon(runner.start)
        yield runners


async def _end(runner: RunnerProcess) -> None:
    if runner.is_alive():
        await runner.kill()


# The job ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who has the job."""

    node: str
    fence: int


class Desk:
    """The one who looks on: stores the job, sees who has it."""

    def __init__(self, client: Client, folder: pathlib.Path) -> None:
        self.client = client
        self.notes = folder / "notes.txt"
        self.places = Places()

    async def set_job(self, *, stubborn_s: float = 0.0, unfenced: bool = False) -> None:
        """Have it counted; see `COUNTER`."""
        code = await CodeRoot.as_handler(self.client)
        await code.add("counter", code=COUNTER, is_async=True)
        data = {
            "notes": str(self.notes),
            "step_s": STEP_S,
            "stubborn_s": stubborn_s,
            "unfenced": unfenced,
            "url": self.client.server.url,
        }
        value = {"code": P("counter"), "data": data, "target": time.time(), "delay": 0.1}
        await self.client.set(commands.job_path(self.places, "any", GROUP, JOB), value)

    async def claim(self) -> Claim | None:
        """Who has the job now."""
        found = await self.client.get(commands.claim_path(self.places, "any", GROUP, JOB))
        return Claim(node=found.value.node, fence=found.rev) if "value" in found else None

    async def state(self) -> dict[str, Any]:
        """What the job's state entry says."""
        found = await self.client.get(commands.state_path(self.places, "any", GROUP, JOB))
        value: dict[str, Any] = found.get("value", {})
        return value

    async def count(self) -> int:
        """How far it has counted."""
        value: int = (await self.client.get(COUNT)).get("value", 0)
        return value

    async def step_after(self, fence: int, limit_s: float) -> Claim | None:
        """The first holder that steps under a higher fence; None if nobody does in time."""
        with anyio.move_on_after(limit_s):
            while True:
                found = await self.client.get(COUNT)
                line = await self.client.get(LOG / found.value) if "value" in found else found
                if "value" in line and line.value.fence > fence:
                    return Claim(node=line.value.node, fence=line.value.fence)
                await anyio.sleep(STEP_S / 2)
        return None

    async def claims(self) -> list[str]:
        """The claims that are there."""
        rows = self.client.get_tree(self.places.claim)
        return [f"{row.path}: {row.value}" async for row in rows]

    async def is_member(self, name: str, limit_s: float) -> bool:
        """Whether a runner is in the group, or comes into it within so many seconds."""
        with anyio.move_on_after(limit_s):
            async with self.client.watch_group(self.places.group + GROUP) as changes:
                async for members in changes:
                    if members is not None and name in members:
                        return True
        return False

    async def trace(self) -> Trace:
        """What the job has left behind so far."""
        # First the notes: what they say was answered has to be in the tree, read afterwards.
        text = self.notes.read_text() if self.notes.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        rows = [row async for row in self.client.get_tree(LOG, min_depth=1)]
        rows.sort(key=lambda row: row.rev)
        steps = [
            Step(
                number=int(str(row.path[0])),
                fence=row.value.fence,
                node=row.value.node,
                rev=row.rev,
            )
            for row in rows
        ]
        return Trace(steps=steps, notes=[Note.parse(line) for line in whole.splitlines()])


# What is found ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """A line of the log in the tree."""

    number: int
    fence: int
    node: str
    rev: int


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line of the file."""

    what: str
    number: int
    """Of the step; 0 if it is none."""
    fence: int
    node: str
    at: float
    """Monotonic seconds."""

    @classmethod
    def parse(cls, line: str) -> Note:
        what, number, fence, node, at = line.split()
        steps = 0 if number == "-" else int(number)
        return cls(what=what, number=steps, fence=int(fence), node=node, at=float(at))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All steps in the order of their revisions, all notes in that of the file."""

    steps: list[Step]
    notes: list[Note]

    @property
    def runs(self) -> int:
        return sum(note.what == "begin" for note in self.notes)

    def refusals(self) -> dict[str, int]:
        """How often the job met which error."""
        return Counter(note.what for note in self.notes if note.what not in ("begin", "step"))

    def doubles(self) -> list[str]:
        """Steps that were accepted under a fence after one under a higher fence; a fence of two.

        The log's own revisions decide, so this is what the tree has let through.
        """
        found = []
        highest = Step(number=0, fence=0, node="", rev=0)
        nodes: dict[int, str] = {}
        for step in self.steps:
            if step.fence < highest.fence:
                found.append(f"{step} was accepted after {highest}")
            if nodes.setdefault(step.fence, step.node) != step.node:
                found.append(f"{step}: {nodes[step.fence]} had that fence")
            if step.rev <= step.fence:
                found.append(f"{step} is older than its claim")
            highest = max(highest, step, key=lambda each: each.fence)
        return found

    def overlaps(self) -> list[str]:
        """Runs that were at work, by the clock, while one with another fence was."""
        spans: dict[tuple[int, str], tuple[float, float]] = {}
        for note in self.notes:
            if note.what in ("begin", "step"):
                first, last = spans.get((note.fence, note.node), (note.at, note.at))
                spans[note.fence, note.node] = min(first, note.at), max(last, note.at)
        found = []
        before: tuple[tuple[int, str], float] | None = None
        for who, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
            if before is not None and first <= before[1]:
                found.append(f"{who} began {before[1] - first:.3f} s before {before[0]} ended")
            if before is None or last > before[1]:
                before = (who, last)
        return found

    def lost(self) -> list[str]:
        """Numbers that are missing, or there twice; steps that were answered and are not there."""
        numbers = [step.number for step in self.steps]
        found = []
        if numbers != list(range(1, len(numbers) + 1)):
            found.append(f"the numbers of {len(numbers)} steps are not 1 to {len(numbers)}")
        there = {(step.number, step.fence) for step in self.steps}
        found += [
            f"{note} was answered and is not there"
            for note in self.notes
            if note.what == "step" and (note.number, note.fence) not in there
        ]
        return found
