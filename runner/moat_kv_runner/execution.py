"""One run of a procedure: with the names that it is given, to its end.

`running` makes a `Run` for a job that is `inline` and starts it: async procedures run in the
runner's own loop, both kinds of synchronous ones in a worker thread of their own, which is left
behind if it does not end when the run is cancelled (its writes are refused then); required modules
are loaded in such a thread, too. `perform` is the same in a child process. Nothing here knows of
claims, schedules or states.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal

from moat_kv import blocking, codec, errors
from moat_kv.client import error_record, writes
from moat_kv.client.client import Client
from moat_kv.code import compiling
from moat_kv.code.modules import ModuleRoot
from moat_kv.notgiven import NotGiven
from moat_kv.path import P, Path
from moat_kv_runner import messages, readiness, script_client
from moat_kv_runner.admin import CallAdmin, ScriptEnded

logger = logging.getLogger(__name__)

#: What a state entry needs beside its result, in bytes of a frame.
ENTRY_BYTES = 8 * 1024

_RESULT = "result"

_CLASSES = codec.AttrDict({cls.__name__: cls for cls in messages.SCRIPT_CLASSES})
_CLASSES["NotGiven"] = NotGiven


class Run:
    """One run of a procedure. `work` is a task of the client, and contains whatever it raises."""

    def __init__(
        self,
        call: readiness.Call,
        admin: CallAdmin,
        *,
        client: Client,
        modules: ModuleRoot,
        config: Mapping[str, Any],
        on_over: Callable[[], None],
        log: logging.Logger | None = None,
    ) -> None:
        #: Set right before the script's first line.
        self.begun = anyio.Event()
        #: Set when nothing of it goes on any more.
        self.over = anyio.Event()
        #: It was cancelled before it had a result or an error.
        self.was_cut_off = True
        #: Only those in other processes can be.
        self.was_left_alone = self.was_killed = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._admin = admin
        self._client = client
        self._modules = modules
        self._config = config
        self._on_over = on_over
        self._log = log
        self._scope = anyio.CancelScope()

    async def work(self) -> None:
        """Run it to its end."""
        try:
            with self._scope:
                try:
                    self.result = await self._execute()
                except Exception as exc:
                    self.error = cause_of(exc)
                self.was_cut_off = False
        finally:
            self.over.set()
            self._on_over()

    def tell_state(self, state: messages.ActorState) -> None:
        """The group's state has changed, perhaps."""
        self._admin.tell_state(state)

    async def confirm(self, fence: writes.Guard) -> None:
        """It began without a claim, and has this one now."""
        if isinstance(self._client, script_client.ScriptClient):
            self._client.give_claim(fence)

    async def tell_lost(self, why: str) -> None:
        """The job is another runner's; `stop` has to follow."""
        if isinstance(self._client, script_client.ScriptClient):
            self._client.lose(why)

    async def stop(self, limit_s: float, *, at_once: bool = False) -> bool:
        """Cancel it, if it is not over, and give it so many seconds; whether it is over then.

        A task cannot be ended `at_once`. Cannot be cancelled itself.
        """
        if not self.over.is_set():
            self._scope.cancel()
            with anyio.move_on_after(limit_s, shield=True):
                await self.over.wait()
        return self.over.is_set()

    async def _execute(self) -> Any:
        call, modules = self._call, self._modules
        needs, name = call.needs, call.procedure.name
        return await perform(
            call,
            self._admin,
            client=self._client,
            load=(lambda: modules.load(needs, needed_by=name)) if needs.stored else None,
            config=self._config,
            log=self._log,
            begins=self.begun.set,
        )


async def perform(
    call: readiness.Call,
    admin: CallAdmin,
    *,
    client: Client,
    load: Callable[[], None] | None,
    config: Mapping[str, Any],
    begins: Callable[[], None] | None = None,
    log: logging.Logger | None = None,
) -> Any:
    """A procedure's result, which can be stored; in a runner and in a child alike.

    `load` imports the modules that it requires and may block; `begins` is called right before the
    script is. Raises what the procedure does, or an exception group if several of its tasks failed;
    BadValue for a result that cannot be carried.
    """
    name = call.procedure.name
    if load is not None:
        required = load
        await _in_thread(lambda _portal: required, name)
    given = common_names(admin.path, config, log)
    if begins is not None:
        begins()
    try:
        if call.procedure.is_async:
            given |= {"_client": client, "_info": admin.info, "_self": admin}
            result = await admin.run(call.procedure.bind({**call.variables, **given}))
        else:
            result = await _in_thread(
                lambda portal: call.procedure.bind(
                    {**call.variables, **given, "_client": blocking.Client(portal, client)}
                ),
                name,
            )
    finally:
        _stop_mirrors(client)
    return checked_result(result, client)


def common_names(
    job: Path, config: Mapping[str, Any], log: logging.Logger | None = None
) -> dict[str, Any]:
    """What every script is given beside its client, by name; `log` by default the job's logger."""
    return {
        "_cfg": config,
        "_cls": codec.AttrDict(_CLASSES),
        "_digits": codec.digits,
        "_log": log or logging.getLogger(f"moat_kv.job.{job}"),
        "_P": P,
        "_Path": Path,
    }


async def _in_thread(make: Callable[[BlockingPortal], Callable[[], Any]], name: str) -> Any:
    """Call what `make` makes in a thread beside the loop; cancelled, it is left behind there."""
    async with BlockingPortal() as portal:
        worker = _Worker(make(portal), portal)
        thread = threading.Thread(target=worker.work, name=name, daemon=True)
        thread.start()
        try:
            await worker.done.wait()
        except anyio.get_cancelled_exc_class():
            logger.warning("%s: its thread is left behind, until it ends by itself", name)
            raise
        finally:
            # Calls of its client that are under way end; from now on all are refused.
            await portal.stop(cancel_remaining=True)
    return worker.result()


class _Worker:
    """A function in a daemon thread, so that one that never ends does not keep the process."""

    def __init__(self, call: Callable[[], Any], portal: BlockingPortal) -> None:
        self.done = anyio.Event()
        self._call = call
        self._portal = portal
        self._result: Any = None
        self._error: BaseException | None = None

    def work(self) -> None:
        try:
            self._result = self._call()
        except BaseException as exc:
            self._error = exc
        try:
            self._portal.call(self.done.set)
        except (RuntimeError, concurrent.futures.CancelledError):
            return  # nobody waits any more

    def result(self) -> Any:
        error = self._error
        if error is None:
            return self._result
        raise _ordinary(error)


class Stopped(BaseException):
    """A synchronous script in a main thread is to end; made by a signal."""


def called(call: Callable[[], Any]) -> Any:
    """Call a synchronous script here; only `Stopped` and ordinary exceptions come out of it."""
    try:
        return call()
    except Stopped:
        raise
    except BaseException as exc:
        raise _ordinary(exc)  # noqa: B904


def _ordinary(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    text = error_record.describe(error)
    if isinstance(error, SystemExit):
        text = f"the script called sys.exit({error.code!r})"
    ended = ScriptEnded(text)
    ended.__cause__ = error
    return ended


def _stop_mirrors(client: Client) -> None:
    """Mirrors that the script has made through its bound client end with the run."""
    mirrors = client.shared.mirrors
    for key in [key for key in mirrors if key[2] is client.binding]:
        mirrors.pop(key).stop()


def checked_result(result: Any, client: Client) -> Any:
    """The result, if it can be stored. Raises BadValue."""
    # As deep as it will be in the state entry, and with the server's eyes.
    packed = codec.pack({_RESULT: result})
    codec.check(packed)
    size = len(packed) - len(codec.pack({_RESULT: None})) + 1
    limit = client.server.frame_limit - ENTRY_BYTES
    if size > limit:
        raise errors.BadValue(f"the result has {size} bytes, {limit} can be stored")
    return result


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without what surrounds it: groups of one, and the runner's own frames."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and not compiling.is_stored(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)
