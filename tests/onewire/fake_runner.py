"""A tree and a runner small enough to see through, for the scripts' own logic.

`FakeTree` keeps entries, revisions and error records; `FakeCall` is `_self`, `FakeClient`
`_client`; `run` starts a procedure with them and gives it messages in the order in which a runner
does. What a test wants to happen is waited for with `FakeTree.until`.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from moat_kv import codec, errors
from moat_kv.path import P, Path
from moat_kv_runner import messages
from tests.onewire import stored

CLASSES = codec.AttrDict(
    {
        name: getattr(messages, name)
        for name in (
            "ActorState",
            "CompleteState",
            "PartialState",
            "DetachedState",
            "BrokenState",
            "RunnerMsg",
            "ChangeMsg",
            "TimerMsg",
            "ReadyMsg",
            "ErrorRecorded",
        )
    }
)


class FakeTree:
    """Entries with revisions, open error records, and who watches."""

    def __init__(self) -> None:
        self.entries: dict[Path, tuple[Any, int]] = {}
        self.errors: dict[Path, str] = {}
        self.recorded: list[Path] = []
        self.writes: list[tuple[Path, Any]] = []
        self.rev = 0
        self.watchers: list[Callable[[codec.AttrDict], None]] = []
        self._changed = anyio.Event()

    def value(self, path: str) -> Any:
        """The value at a path in text form, None if there is none."""
        return self.entries.get(P(path), (None, 0))[0]

    def set(self, path: Path, value: Any, expect: int | None = None) -> codec.AttrDict:
        have = self.entries.get(path, (None, 0))[1]
        if expect is not None and expect != have:
            raise errors.Conflict(path, expect, have)
        codec.pack(value)
        self.rev += 1
        self.entries[path] = value, self.rev
        self.writes.append((path, value))
        return self._tell(codec.AttrDict(path=path, value=value, rev=self.rev))

    def delete(self, path: Path) -> None:
        self.rev += 1
        del self.entries[path]
        self._tell(codec.AttrDict(path=path, rev=self.rev))

    def _tell(self, event: codec.AttrDict) -> codec.AttrDict:
        for watcher in self.watchers:
            watcher(event)
        self.notify()
        return event

    def notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, true: Callable[[], bool], within_s: float = 30) -> None:
        with anyio.fail_after(within_s):
            while not true():
                await self._changed.wait()


class FakeClient:
    def __init__(self, tree: FakeTree) -> None:
        self._tree = tree

    async def set(self, path: Path, value: Any, *, expect: int | None = None) -> Any:
        await anyio.lowlevel.checkpoint()
        return self._tree.set(path, value, expect)

    async def get_tree(
        self, path: Path, *, min_depth: int = 0, max_depth: int = -1
    ) -> AsyncIterator[Any]:
        for full, (value, rev) in list(self._tree.entries.items()):
            depth = len(full) - len(path)
            deep = math.inf if max_depth < 0 else max_depth
            if full[: len(path)] == path and min_depth <= depth <= deep:
                await anyio.lowlevel.checkpoint()
                yield codec.AttrDict(path=full[len(path) :], value=value, rev=rev)


class FakeInfo:
    """The queue of messages."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._changed = anyio.Event()

    def put(self, message: Any) -> None:
        self._waiting.append(message)
        self._changed.set()
        self._changed = anyio.Event()

    def __aiter__(self) -> FakeInfo:
        return self

    async def __anext__(self) -> Any:
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            await self._changed.wait()
        return self._waiting.popleft()


class FakeTimer:
    def __init__(self, call: FakeCall, cls: type) -> None:
        self._call = call
        self._cls = cls
        self._scope: anyio.CancelScope | None = None

    async def run(self, delay_s: float) -> None:
        self.cancel()
        self._scope = anyio.CancelScope()
        self._call.delays.append(delay_s)
        self._call.tree.notify()
        self._call.tasks.start_soon(self._wait, delay_s, self._scope)

    def cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def _wait(self, delay_s: float, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(delay_s)
            self._call.info.put(self._cls(self))


class FakeCall:
    """`_self`."""

    node = "n1"
    fence = 1

    def __init__(self, tree: FakeTree, tasks: anyio.abc.TaskGroup, stack: AsyncExitStack) -> None:
        self.tree = tree
        self.tasks = tasks
        self.stack = stack
        self.info = FakeInfo()
        self.watches = 0
        self.set_up = 0
        self.delays: list[float] = []

    async def open_context(self, manager: Any) -> Any:
        return await self.stack.enter_async_context(manager)

    async def watch(
        self, path: Path, cls: type = messages.ChangeMsg, *, max_depth: int = 0, min_depth: int = 0
    ) -> None:
        def wanted(event: codec.AttrDict) -> None:
            depth = len(event.path) - len(path)
            if event.path[: len(path)] == path and min_depth <= depth <= max_depth:
                self.info.put(cls(event))

        self.watches += 1
        self.tree.watchers.append(wanted)
        for full, (value, rev) in list(self.tree.entries.items()):
            wanted(codec.AttrDict(path=full, value=value, rev=rev))
        self.info.put(messages.ReadyMsg(self.watches))

    async def timer(self, delay_s: float, cls: type = messages.TimerMsg) -> FakeTimer:
        timer = FakeTimer(self, cls)
        if delay_s > 0:
            await timer.run(delay_s)
        return timer

    async def set(self, path: Path, value: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return self.tree.set(path, value)

    async def setup_done(self) -> None:
        self.set_up += 1

    async def record_error(self, path: Path, message: str, data: dict[str, Any]) -> None:
        codec.pack(data)
        self.tree.errors[path] = message
        self.tree.recorded.append(path)
        self.tree.notify()

    async def resolve_error(self, path: Path) -> None:
        self.tree.errors.pop(path, None)
        self.tree.notify()

    async def error(self, path: Path | None = None, *, message: str) -> None:
        raise messages.ErrorRecorded(message)


async def _procedure(call: FakeCall, folder: str, name: str, data: dict[str, Any]) -> Any:
    compiled, defaults = stored.procedure(folder, name)
    injected = {
        "_self": call,
        "_info": call.info,
        "_client": FakeClient(call.tree),
        "_cls": CLASSES,
        "_log": logging.getLogger(name),
        "_P": P,
        "_Path": Path,
    }
    call.info.put(messages.DetachedState(messages.GroupSeen(members=("n1",), nodes=None)))
    call.info.put(messages.ReadyMsg(0))
    return await compiled.bind({**defaults, **data, **injected})()


@asynccontextmanager
async def running(
    tree: FakeTree, name: str, *, folder: str = "onewire", **data: Any
) -> AsyncIterator[FakeCall]:
    """Run an example's procedure for the block, as a job that is then cancelled."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        call = FakeCall(tree, tasks, stack)
        tasks.start_soon(_procedure, call, folder, name, data)
        yield call
        tasks.cancel_scope.cancel()


async def finish(tree: FakeTree, name: str, *, folder: str = "demo", **data: Any) -> Any:
    """Run an example's procedure to its end and return its result."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        call = FakeCall(tree, tasks, stack)
        result = await _procedure(call, folder, name, data)
        tasks.cancel_scope.cancel()
    return result
