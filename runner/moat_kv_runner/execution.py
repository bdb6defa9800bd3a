"""One run of a procedure: with the names that it is given, inline or in a thread, to its end.

`supervision` calls `execute`, and this is the seam where a run's place is chosen: async procedures
run in the runner's own loop, both kinds of synchronous ones in a worker thread of their own, which
is left behind if it does not end when the run is cancelled (its writes are refused then). Nothing
here knows of claims, schedules or states.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from moat_kv import blocking, codec, errors
from moat_kv.client import error_record
from moat_kv.client.client import Client
from moat_kv.code.modules import ModuleRoot
from moat_kv.notgiven import NotGiven
from moat_kv.path import P, Path
from moat_kv_runner import messages, readiness
from moat_kv_runner.admin import CallAdmin, ScriptEnded

#: What a state entry needs beside its result, in bytes of a frame.
ENTRY_BYTES = 8 * 1024

_CLASSES = codec.AttrDict({cls.__name__: cls for cls in messages.SCRIPT_CLASSES})
_CLASSES["NotGiven"] = NotGiven


async def execute(
    call: readiness.Call,
    admin: CallAdmin,
    *,
    client: Client,
    modules: ModuleRoot,
    config: Mapping[str, Any],
) -> Any:
    """Run a procedure to its end; `client` is bound to the run's fence.

    Returns its result, which can be stored. Raises what the procedure does, or an exception group
    if several of its tasks failed; BadValue for a result that cannot be carried.
    """
    needs = call.needs
    if needs.stored:
        name = call.procedure.name
        await anyio.to_thread.run_sync(lambda: modules.load(needs, needed_by=name))
    given = {
        "_cfg": config,
        "_cls": codec.AttrDict(_CLASSES),
        "_digits": codec.digits,
        "_log": logging.getLogger(f"moat_kv.job.{admin.path}"),
        "_P": P,
        "_Path": Path,
    }
    try:
        if call.procedure.is_async:
            given |= {"_client": client, "_info": admin.info, "_self": admin}
            result = await admin.run(call.procedure.bind({**call.variables, **given}))
        else:
            result = await _in_thread(call, given, client)
    finally:
        _stop_mirrors(client)
    _check_result(result, client)
    return result


async def _in_thread(call: readiness.Call, given: dict[str, Any], client: Client) -> Any:
    """Run a synchronous procedure beside the loop, with a blocking client."""
    async with anyio.from_thread.BlockingPortal() as portal:
        names = {**call.variables, **given, "_client": blocking.Client(portal, client)}
        worker = _Worker(call.procedure.bind(names), portal)
        threading.Thread(target=worker.work, name=call.procedure.name, daemon=True).start()
        try:
            await worker.done.wait()
        finally:
            # The client's calls that are under way end; a thread that goes on has none any more.
            await portal.stop(cancel_remaining=True)
    return worker.result()


class _Worker:
    """A function in a daemon thread, so that one that never ends does not keep the runner."""

    def __init__(self, call: Callable[[], Any], portal: anyio.from_thread.BlockingPortal) -> None:
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
        except RuntimeError:
            return  # nobody waits any more

    def result(self) -> Any:
        error = self._error
        if error is None:
            return self._result
        if isinstance(error, Exception):
            raise error
        if isinstance(error, SystemExit):
            raise ScriptEnded(f"the script called sys.exit({error.code!r})") from error
        raise ScriptEnded(error_record.describe(error)) from error


def _stop_mirrors(client: Client) -> None:
    """Mirrors that the script has made through its bound client end with the run."""
    mirrors = client.shared.mirrors
    for key in [key for key in mirrors if key[2] is client.binding]:
        mirrors.pop(key).stop()


def _check_result(result: Any, client: Client) -> None:
    size = len(codec.pack(result))
    limit = client.server.frame_limit - ENTRY_BYTES
    if size > limit:
        raise errors.BadValue(f"the result has {size} bytes, {limit} can be stored")


def cause_of(error: BaseException) -> BaseException:
    """What went wrong, without what surrounds it: groups of one, and the runner's own frames."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and not _is_stored(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return error if trace is None else error.with_traceback(trace)


def _is_stored(filename: str) -> bool:
    return filename.startswith(("<code ", "<module "))
