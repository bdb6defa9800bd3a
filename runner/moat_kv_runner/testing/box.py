"""What a test of a script works on: a server in memory, virtual time, a bus, and scripts.

    with running_box() as box:
        run = box.run_script("lamps.py", entries={"home.kitchen": {"lamps": 3}}, watts=7)
        assert run.entries["home.power"] == 21

Every call returns when all has settled, so a test needs no waiting: what has not happened then does
not happen unless time passes (`advance`) or something is changed. Time begins at `BEGIN` and stands
still in between. The script runs in an event loop of its own, in a thread beside the test.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import anyio.abc

from moat_kv.client.client import Client
from moat_kv.code import ModuleRoot
from moat_kv.config import Places
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import P, Path
from moat_kv.testing import virtual_builtins
from moat_kv_runner import admin
from moat_kv_runner.testing import looping, script_run
from moat_kv_runner.trying import ground, trial

#: When a box's time begins, by the wall clock: a Monday at noon.
BEGIN = datetime(2026, 1, 5, 12, tzinfo=UTC)
#: Packets between the bus and its client may be on their way for so long, in seconds.
BUS_CUSHION_S = 0.01

_SYSTEM = ".moat"


class Box:
    """See above. Paths are given as text, or as `Path`s."""

    def __init__(self, *, backend: str = "asyncio", folder: pathlib.Path | None = None) -> None:
        self.backend = backend
        #: Where scripts are looked for that are named without a folder.
        self.folder = folder or pathlib.Path()
        self.runs: list[script_run.ScriptRun] = []
        self._begin_s = BEGIN.timestamp()
        self._loop = looping.LoopThread(self._living, backend=backend)
        self._ground = self._loop.made

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[ground.Ground]:
        engine = MemoryEngine(clock=self.now)
        async with ground.running_ground(engine=engine) as made:
            yield made

    # Time ---------------------------------------------------------------------------------------

    def now(self) -> float:
        """The box's time, in seconds since 1970; what `time.time()` tells the script."""
        return self._begin_s + self._loop.clock.now

    def set_time(self, when: datetime | str) -> None:
        """Set the box's wall clock, such as `2026-03-29T01:59+01:00`; before the script starts."""
        at = datetime.fromisoformat(when) if isinstance(when, str) else when
        self._begin_s = at.timestamp() - self._loop.clock.now

    @property
    def cushion_s(self) -> float:
        """For so long, in seconds of real time, nothing may come from outside of the process before
        all counts as settled: for scripts that talk to programs of their own.
        """
        return self._loop.clock.cushion_s

    @cushion_s.setter
    def cushion_s(self, seconds: float) -> None:
        self._loop.clock.cushion_s = seconds

    def advance(self, seconds: float) -> None:
        """Let so much time pass, at once."""
        self._loop.call(self._loop.clock.advance, seconds)

    def step_until(self, done: Callable[[], bool], within_s: float) -> bool:
        """Let time pass from timer to timer until this holds; whether it does."""
        clock = self._loop.clock
        until = clock.now + within_s

        async def step() -> bool:
            due = clock.next_due()
            if due is None or due > until:
                await clock.advance(until - clock.now)
                return False
            await clock.advance(max(0.0, due - clock.now))
            return True

        self.settle()
        while not done():
            if not self._loop.call(step):
                return done()
        return True

    def settle(self) -> None:
        """Return when nothing more happens by itself; every other call ends with it."""
        self._loop.call(self._loop.clock.settle)

    def do(self, function: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        """Call an async function in the script's event loop, and settle; its result."""
        result = self._loop.call(function, *args, **kwargs)
        self.settle()
        return result

    # Entries ------------------------------------------------------------------------------------

    def set(self, path: str | Path, value: Any) -> None:
        """Write an entry, as somebody else would."""
        self.do(self._ground.desk.set, _path(path), value)

    def delete(self, path: str | Path) -> None:
        """Delete an entry."""
        self.do(self._ground.desk.delete, _path(path))

    def send(self, topic: str | Path, value: Any) -> None:
        """Broadcast a message."""
        self.do(self._ground.desk.send, _path(topic), value)

    def get(self, path: str | Path) -> Any:
        """An entry's value. Raises KeyError if it has none."""
        found = self.do(self._ground.desk.get, _path(path))
        if "value" not in found:
            raise KeyError(str(path))
        return found.value

    @property
    def entries(self) -> dict[str, Any]:
        """All entries, by path as text, but for the system's own below `:.moat`."""

        async def read() -> dict[str, Any]:
            rows = self._ground.desk.get_tree(Path())
            return {str(row.path): row.value async for row in rows if row.path[:1] != (_SYSTEM,)}

        found: dict[str, Any] = self.do(read)
        return found

    # Scripts ------------------------------------------------------------------------------------

    def run_script(
        self,
        file: str | pathlib.Path | None = None,
        *,
        code: str | None = None,
        entries: Mapping[str, Any] | None = None,
        modules: Mapping[str, str | pathlib.Path] | None = None,
        requires: Sequence[str] = (),
        variables: Sequence[str] = (),
        is_async: bool | None = True,
        state: str = "detached",
        data: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> script_run.ScriptRun:
        """Start a script, from a file or from its text; returns when all has settled.

        `entries` are written before; `modules` maps names to files that are stored as modules.
        `data`, and whatever else is given by name, are the job's data. `state`: the group's at the
        start. `is_async` false: it is run to its end, in real time.

        Raises BadCode and the like if it cannot be run; what it raises itself is in `error`, and
        fails the test at its end if nobody has looked.
        """
        if (file is None) == (code is None):
            raise TypeError("run_script takes a file, or code=")
        name = "script" if file is None else pathlib.Path(file).stem
        text = self._read(file) if file is not None else code
        for path, value in (entries or {}).items():
            self.set(path, value)
        value = {"code": text, "is_async": is_async, "vars": list(variables)}
        if requires:
            value["requires"] = list(requires)
        given = {**(data or {}), **more}
        script = trial.script_of(value, name=name, data=given)
        run = script_run.ScriptRun(self)
        begun = script_run.group_state(state, ("trial",), 1)
        self.do(self._start, run, script, begun, modules or {})
        return run

    async def _start(
        self,
        run: script_run.ScriptRun,
        script: trial.Script,
        state: Any,
        modules: Mapping[str, str | pathlib.Path],
    ) -> None:
        stored = await ModuleRoot.as_handler(self._ground.desk, places=Places())
        for name, file in modules.items():
            await stored.add(P(name), code=self._read(file))
        # A thread's sleep is real, so a synchronous script has to live by the real clock.
        is_async = script.procedure.is_async is True
        clock = self._loop.clock
        builtins = virtual_builtins.of_clock(self.now, lambda: clock.now) if is_async else None

        def make(line: Client) -> trial.Trial:
            return trial.Trial(
                script,
                line=line,
                desk=self._ground.desk,
                tell=run.tell,
                places=Places(),
                state=state,
                load=lambda: stored.load(script.needs, needed_by=script.procedure.name),
                begins=run.begins,
            )

        self.runs.append(run)
        clock.at_work.append(lambda: run.is_in_thread(is_async))
        self._ground.tasks.start_soon(run.work, self._ground, make, builtins)

    def stop_run(self, run: script_run.ScriptRun) -> None:
        async def stop() -> None:
            run.cancel()
            # Its contexts may take their time.
            await self._loop.clock.advance(admin.CLOSE_S)

        self.do(stop)

    def _read(self, file: str | pathlib.Path) -> str:
        """A script's text; files are looked for beside the test first."""
        beside = self.folder / file
        return (beside if beside.exists() else pathlib.Path(file)).read_text(encoding="utf-8")

    # The bus ------------------------------------------------------------------------------------

    def start_bus(self) -> BusHandle:
        """A simulated 1-wire bus, for as long as the box lives."""
        from moat_kv.testing import onewire

        clock = self._loop.clock
        self.cushion_s = max(self.cushion_s, BUS_CUSHION_S)

        async def start() -> onewire.SimulatedBus:
            running = onewire.running_bus(clock=lambda: clock.now)
            bus: onewire.SimulatedBus = await self._ground.tasks.start(_hold, running)
            return bus

        return BusHandle(self, self.do(start))

    # Its end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all scripts, and the box. Raises what a script has raised unseen."""
        try:
            for run in self.runs:
                if not run.is_over and not self._loop.is_stuck:
                    self.stop_run(run)
        finally:
            self._loop.close()
        for run in self.runs:
            if run.unseen_error is not None:
                raise run.unseen_error


class BusHandle:
    """A simulated bus in a box's loop: the attributes and methods of `SimulatedBus`."""

    def __init__(self, box: Box, bus: Any) -> None:
        self._box = box
        self._bus = bus
        self.host = "127.0.0.1"
        self.port: int = bus.port

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._bus, name)
        if not callable(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

        return functools.partial(self._box.do, call)


async def _hold(
    manager: AbstractAsyncContextManager[Any], *, task_status: anyio.abc.TaskStatus[Any]
) -> None:
    """Enter a context, and leave it when the box ends, in one task."""
    async with manager as entered:
        task_status.started(entered)
        await anyio.sleep_forever()


def _path(path: str | Path) -> Path:
    return P(path) if isinstance(path, str) else path


@contextmanager
def running_box(*, backend: str = "asyncio", folder: pathlib.Path | None = None) -> Iterator[Box]:
    """A box, closed at the end."""
    box = Box(backend=backend, folder=folder)
    try:
        yield box
    except BaseException:
        for run in box.runs:
            run.error_was_seen = True  # the test has failed already, for its own reason
        raise
    finally:
        box.close()
