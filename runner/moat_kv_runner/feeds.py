"""What fills a script's `_info`, and what it can cancel: watches, monitors, timers, tasks.

`admin.CallAdmin` makes one of these for each call and hands it to the script. Each lives in a task
of the run's task group and ends with it. They put messages into the run's `InfoQueue` and never
wait for the script, but for a watch, which may wait for room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from moat_kv.client import results
from moat_kv.client.client import Client
from moat_kv.path import Path
from moat_kv_runner import messages
from moat_kv_runner.info_queue import InfoQueue

if TYPE_CHECKING:
    from moat_kv_runner.admin import CallAdmin


class Done:
    """Something that has happened already; may be awaited all the same."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


DONE = Done()


class Handle:
    """Something that runs beside the script; `cancel` ends it."""

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()

    def cancel(self) -> Awaitable[None]:
        """End it. Acts at once; the result may be awaited."""
        self._scope.cancel()
        return DONE

    async def work(self, begun: Callable[[], None]) -> None:
        """What it does, in a task of the run; `begun` is called when it misses nothing more."""
        raise NotImplementedError

    async def run_in_task(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with self._scope:
            await self.work(task_status.started)


class Task(Handle):
    """A function of the script's own, beside it."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._call = call

    async def work(self, begun: Callable[[], None]) -> None:
        begun()
        await self._call()


class Timer(Handle):
    """Sends one message after a delay, each time that it is started."""

    def __init__(
        self, tasks: anyio.abc.TaskGroup, info: InfoQueue, cls: type[messages.TimerMsg]
    ) -> None:
        super().__init__()
        self._tasks = tasks
        self._info = info
        self._cls = cls

    def cancel(self) -> Awaitable[None]:
        """Stop it; a message that was not read yet is taken back. Acts at once."""
        self._info.drop(self)
        return super().cancel()

    async def run(self, delay: float) -> None:
        """Start it, or start it anew, to fire after so many seconds (0 or less: at once)."""
        self.cancel()
        self._scope = anyio.CancelScope()
        self._tasks.start_soon(self._fire, delay, self._scope)

    async def _fire(self, delay: float, scope: anyio.CancelScope) -> None:
        with scope:
            await anyio.sleep(max(0.0, delay))
            self._info.push(self._cls(self), self)


class Monitor(Handle):
    """Broadcast messages at a topic and below it."""

    def __init__(
        self,
        client: Client,
        info: InfoQueue,
        topic: Path,
        *,
        cls: type[messages.MQTTmsg],
        raw: bool,
    ) -> None:
        super().__init__()
        # Made here, so that what is wrong with the topic is raised where the script called.
        self._monitor = client.monitor(topic, raw=raw)
        self._info = info
        self._cls = cls

    def cancel(self) -> Awaitable[None]:
        """End it; messages that were not read yet are taken back. Acts at once."""
        self._info.drop(self)
        return super().cancel()

    async def work(self, begun: Callable[[], None]) -> None:
        async with self._monitor as monitor:
            begun()
            async for message in monitor:
                if not self._info.push(self._cls(message), self):
                    return


class Watcher(Handle):
    """A watch of one entry or a subtree."""

    def __init__(
        self,
        client: Client,
        admin: CallAdmin,
        path: Path,
        *,
        cls: type[messages.ChangeMsg],
        fetch: bool,
        min_depth: int,
        max_depth: int,
    ) -> None:
        super().__init__()
        self.fetch = fetch
        self._watch = client.watch(path, fetch=fetch, min_depth=min_depth, max_depth=max_depth)
        self._admin = admin
        self._info = admin.info
        self._cls = cls
        # What the script believes to be there.
        self._known: set[Path] = set()
        # After a reset: what has not been told anew yet.
        self._missed: set[Path] | None = None

    def cancel(self) -> Awaitable[None]:
        """End it; changes that were not read yet are taken back. Acts at once."""
        super().cancel()
        self._info.drop(self)
        self._admin.watch_ended(self)
        return DONE

    async def work(self, begun: Callable[[], None]) -> None:
        async with self._watch as watch:
            begun()
            async for event in watch:
                if not await self._take(event):
                    return

    async def _take(self, event: Any) -> bool:
        if isinstance(event, results.WatchEvent):
            return await self._tell(event)
        if isinstance(event, results.Reset):
            self._missed = set(self._known)
        elif isinstance(event, results.Ready):
            for path in sorted(self._missed or ()):
                gone = results.WatchEvent(0, None)
                gone.path = path
                if not await self._tell(gone):
                    return False
            self._missed = None
            self._admin.watch_ready(self)
        return True

    async def _tell(self, event: results.WatchEvent) -> bool:
        if "value" in event:
            self._known.add(event.path)
        else:
            self._known.discard(event.path)
        if self._missed is not None:
            self._missed.discard(event.path)
        return await self._info.put_change(self, event.path, self._cls(event))


class Context(Handle):
    """A context manager that the run holds open; in a task of its own, so that whatever scopes it
    opens do not cross the script's."""

    def __init__(self, manager: Any) -> None:
        super().__init__()
        self.manager = manager
        self._leave = anyio.Event()
        self.left = anyio.Event()

    async def hold(self, *, task_status: anyio.abc.TaskStatus[Any]) -> None:
        """Enter, tell what was entered, wait, leave. Once it is entered, cancelling the run does
        not reach in here."""
        try:
            with self._scope:
                if hasattr(self.manager, "__aenter__"):
                    async with self.manager as entered:
                        await self._stay(entered, task_status)
                else:
                    with self.manager as entered:
                        await self._stay(entered, task_status)
        finally:
            self.left.set()

    async def _stay(self, entered: Any, task_status: anyio.abc.TaskStatus[Any]) -> None:
        self._scope.shield = True
        task_status.started(entered)
        await self._leave.wait()

    async def close(self) -> None:
        """Leave, and return when that is done."""
        self._leave.set()
        await self.left.wait()
