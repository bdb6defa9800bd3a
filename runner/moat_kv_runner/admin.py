"""`_self`: what an async script controls its run with.

`execution` makes a `CallAdmin` for each run, calls the script in `run`, and closes what the script
has opened. Everything that is started here ends with the run. The methods, their defaults and what
they raise are the product's surface.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.abc

from moat_kv import errors
from moat_kv.client import claiming, error_record, results, writes
from moat_kv.client.client import Client
from moat_kv.code import compiling
from moat_kv.config import Places
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_runner import feeds, messages
from moat_kv_runner.feeds import Timer
from moat_kv_runner.info_queue import InfoQueue

__all__ = ["SUBSYSTEM", "CallAdmin", "RunFacts", "ScriptEnded", "Timer", "guarded"]

logger = logging.getLogger(__name__)

#: The subsystem of jobs' error records.
SUBSYSTEM = "run"
#: How long the contexts of a run may take to close, all together, in seconds.
CLOSE_S = 5.0

_T = TypeVar("_T")
_M = TypeVar("_M", bound=messages.ActorState)


class ScriptEnded(Exception):
    """A script ended in a way that is no ordinary exception; counts as a failure."""


async def guarded(call: Callable[[], Awaitable[_T]]) -> _T:
    """Call a script's function; what would end more than its run becomes `ScriptEnded`.

    Cancellation from outside passes, and what the script has not raised itself (Ctrl-C).
    """
    try:
        return await call()
    except Exception:
        raise
    except anyio.get_cancelled_exc_class() as exc:
        if anyio.current_effective_deadline() == -math.inf:
            raise
        raise ScriptEnded("something that the script waited for was cancelled") from exc
    except SystemExit as exc:
        raise ScriptEnded(f"the script called sys.exit({exc.code!r})") from exc
    except (KeyboardInterrupt, GeneratorExit) as exc:
        if not compiling.is_raised_by_stored(exc):
            raise
        raise ScriptEnded(f"the script raised {type(exc).__name__}") from exc
    except BaseExceptionGroup as exc:
        cancelled, others = exc.split(anyio.get_cancelled_exc_class())
        if cancelled is not None and others is None:
            raise
        raise ScriptEnded(error_record.describe(exc)) from exc
    except BaseException as exc:
        raise ScriptEnded(error_record.describe(exc)) from exc


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run knows of itself."""

    client: Client
    """Bound to the fence."""
    runner_client: Client
    """The runner's own; for error records, which outlive the claim."""
    places: Places
    node: str
    """The runner's name."""
    path: Path
    """The job's entry, absolute."""
    fence: int
    every_node: bool
    """Other nodes run the same job; its error is over when it is on all of them."""
    queue_limit: int
    work_well: Callable[[], Awaitable[None]]
    """Called when the script says that it has been set up: forgets earlier failures."""


class CallAdmin:
    """The controller of one run, `_self`."""

    def __init__(self, facts: RunFacts, *, state: messages.ActorState) -> None:
        self._facts = facts
        self._client = facts.client
        #: What the script reads as `_info`.
        self.info = InfoQueue(facts.queue_limit)
        self._told: messages.ActorState | None = None
        self.tell_state(state)
        self.info.push_start(messages.ReadyMsg(0))
        self._tasks: anyio.abc.TaskGroup | None = None
        self._outer: anyio.abc.TaskGroup | None = None
        self._contexts: list[feeds.Context] = []
        # Watches that fetch: those that have not told all yet, and those that have.
        self._fetching: set[feeds.Watcher] = set()
        self._fetched: set[feeds.Watcher] = set()
        # Some have told all since the last `ReadyMsg`.
        self._ready_is_due = False

    # Facts --------------------------------------------------------------------------------------

    @property
    def fence(self) -> int:
        """The number of this run's claim; each new claim has a higher one. 0: it has none (yet)."""
        late = self._client.binding.fence
        return self._facts.fence or (late[1] if late is not None else 0)

    @property
    def node(self) -> str:
        """The name of the runner that this runs on."""
        return self._facts.node

    @property
    def path(self) -> Path:
        """The job's entry."""
        return self._facts.path

    # Listening ----------------------------------------------------------------------------------

    async def watch(
        self,
        path: Path,
        cls: type[messages.ChangeMsg] = messages.ChangeMsg,
        fetch: bool = True,
        max_depth: int = 0,
        min_depth: int = 0,
    ) -> feeds.Watcher:
        """Have changes of an entry, or of a subtree (`max_depth` -1), sent to `_info` as `cls`.

        With `fetch` first the present state, a parent before its children; when all such watches
        have told theirs, a `ReadyMsg` with their number follows.
        """
        _check_class(cls, messages.ChangeMsg)
        watcher = feeds.Watcher(
            self._client,
            self,
            path,
            cls=cls,
            fetch=fetch,
            min_depth=min_depth,
            max_depth=max_depth,
        )
        if fetch:
            self._fetching.add(watcher)
        return await self._start(watcher)

    async def monitor(
        self,
        path: Path,
        cls: type[messages.MQTTmsg] = messages.MQTTmsg,
        raw: bool = False,
    ) -> feeds.Monitor:
        """Have broadcast messages at and below a topic sent to `_info` as `cls`."""
        _check_class(cls, messages.MQTTmsg)
        return await self._start(feeds.Monitor(self._client, self.info, path, cls=cls, raw=raw))

    async def timer(
        self, delay: float, cls: type[messages.TimerMsg] = messages.TimerMsg
    ) -> feeds.Timer:
        """Have a `cls` sent to `_info` after so many seconds; 0 or less: not started yet."""
        _check_class(cls, messages.TimerMsg)
        timer = feeds.Timer(self._running, self.info, cls)
        if delay > 0:
            await timer.run(delay)
        return timer

    async def spawn(
        self, proc: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> feeds.Task:
        """Run an async function beside the script; if it fails, so does the run."""
        call = functools.partial(guarded, functools.partial(proc, *args, **kwargs))
        return await self._start(feeds.Task(call))

    async def open_context(self, manager: Any) -> Any:
        """Enter a context manager, async or plain; it is left when the run ends, the last first."""
        if self._outer is None:
            raise RuntimeError("the run is over")
        context = feeds.Context(manager)
        entered = await self._outer.start(context.hold)
        self._contexts.append(context)
        return entered

    def cancel(self) -> Awaitable[None]:
        """End the run, with no result. Acts at once; the result may be awaited."""
        self._running.cancel_scope.cancel()
        return feeds.DONE

    # Entries ------------------------------------------------------------------------------------

    async def set(
        self, path: Path, value: Any, chain: Any = NotGiven, **options: Any
    ) -> results.Result:
        """Write an entry. `options` are those of the client's `set`.

        Raises LostClaim when another runner has the job.
        """
        try:
            return await self._client.set(path, value, chain=chain, **options)
        except errors.StaleFence as exc:
            raise messages.lost_claim(exc) from exc

    async def get(self, path: Path) -> Any:
        """An entry's value. Raises KeyError if it has none."""
        result = await self._client.get(path)
        if "value" not in result:
            raise KeyError(path)
        return result.value

    async def send(self, path: Path, value: Any = NotGiven, *, raw: bytes | None = None) -> None:
        """Broadcast a message: a value, or raw bytes."""
        await self._client.send(path, value, raw=raw)

    # Errors -------------------------------------------------------------------------------------

    async def setup_done(self) -> None:
        """All is well: forget earlier failures (back-off 0) and resolve the job's error."""
        await self._facts.work_well()

    async def error(self, path: Path | None = None, **facts: Any) -> None:
        """Record an error and end the run as failed.

        `path` is what is wrong, by default the job. `facts` as for `record_error`.
        Raises ErrorRecorded, always.
        """
        text = await self.record_error(self.path if path is None else path, **facts)
        raise messages.ErrorRecorded(text)

    async def record_error(
        self,
        path: Path,
        *,
        exc: BaseException | None = None,
        message: str | None = None,
        data: Any = None,
        comment: str | None = None,
        **more: Any,
    ) -> str:
        """Record an error and go on; returns its message. It stays until `resolve_error`.

        `exc` gives the traceback, and the message unless there is a `message`; `data` and whatever
        else is given is kept beside it.
        """
        writes.check_path(path)
        if more:
            given = {} if data is None else data if isinstance(data, dict) else {"data": data}
            data = {**given, **more}
        facts = self._facts
        record = await claiming.patiently(
            facts.runner_client,
            lambda: error_record.record(
                facts.runner_client,
                SUBSYSTEM,
                path,
                node=self.node,
                exc=exc,
                message=message,
                data=data,
                comment=comment,
                places=facts.places,
            ),
        )
        return record.message

    async def resolve_error(self, path: Path) -> bool:
        """Note that an error is over; False if there was none."""
        writes.check_path(path)
        facts = self._facts
        return await claiming.patiently(
            facts.runner_client,
            lambda: error_record.resolve(
                facts.runner_client,
                SUBSYSTEM,
                path,
                by=error_record.BY_SUCCESS,
                node=self.node if facts.every_node else None,
                places=facts.places,
            ),
        )

    # For the runner -----------------------------------------------------------------------------

    def tell_state(self, state: messages.ActorState) -> None:
        """The group's state, told if it is another than the last one."""
        told, self._told = self._told, state
        if told is None or (type(told), told.msg) != (type(state), state.msg):
            self.info.push_state(state)

    async def run(self, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Call the script, and end all that it has started. Raises what it, or a part of it, does.

        None if the script has cancelled itself.
        """
        result: _T | None = None
        async with anyio.create_task_group() as self._outer:
            try:
                async with anyio.create_task_group() as self._tasks:
                    result = await guarded(call)
                    self._tasks.cancel_scope.cancel()
            finally:
                self._tasks = None
                self.info.end()
                await self._close_contexts()
        self._outer = None
        return result

    async def _close_contexts(self) -> None:
        with anyio.move_on_after(CLOSE_S, shield=True):
            while self._contexts:
                await self._contexts[-1].close()
                self._contexts.pop()
        for context in self._contexts:
            logger.warning("%s: %r is not left after %g s", self.path, context.manager, CLOSE_S)
            context.cancel()

    @property
    def _running(self) -> anyio.abc.TaskGroup:
        if self._tasks is None:
            raise RuntimeError("the run is over")
        return self._tasks

    async def _start(self, handle: _H) -> _H:
        await self._running.start(handle.run_in_task)
        return handle

    def watch_ready(self, watcher: feeds.Watcher) -> None:
        """A watch has told its present state."""
        if watcher in self._fetching:
            self._fetching.discard(watcher)
            self._fetched.add(watcher)
            self._ready_is_due = True
            self._tell_ready()

    def watch_ended(self, watcher: feeds.Watcher) -> None:
        """A watch was cancelled; others may have waited for it to tell all."""
        self._fetched.discard(watcher)
        self._fetching.discard(watcher)
        self._tell_ready()

    def _tell_ready(self) -> None:
        if self._ready_is_due and not self._fetching:
            self._ready_is_due = False
            self.info.push_ready(messages.ReadyMsg(len(self._fetched)))


_H = TypeVar("_H", bound=feeds.Handle)


def _check_class(cls: Any, base: type[_M]) -> None:
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise TypeError(f"cls is a subclass of {base.__name__}, not {cls!r}")
