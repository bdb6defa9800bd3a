"""In a child: takes calls from the runner, runs them, and tells what became of them.

An async script runs in an event loop in the main thread, one that is "for a thread" in a thread
beside it, and a quick synchronous one in the main thread, with the loop of its client in another.
Each run has a line of its own to the server, bound to its claim. All names that a script is given
are made by the same code as in the runner (`execution`, `admin`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import anyio.from_thread

from moat_kv import blocking, codec, errors, open_client
from moat_kv.client import claiming, results, writes
from moat_kv.client.client import Client
from moat_kv.code import compiling, importing, requires
from moat_kv.config import Config, Places, RunnerConfig
from moat_kv_runner import (
    admin,
    execution,
    holding,
    messages,
    readiness,
    script_client,
    script_config,
)
from moat_kv_runner.children import calls, child, reporting, shelf, unwinding, wire

logger = logging.getLogger(__name__)

#: How long a run waits for a server before it fails, in seconds; its runner's session is over
#: before that if there is none.
CONNECT_S = 60.0
#: How long it may take to see whether this line has broken with the runner's, in seconds.
LOOK_S = 1.0
#: How often a line is tried to be bound to a claim that a run got late.
BIND_TRIES = 10


def live(control: socket.socket, beside: socket.socket, *, backend: str) -> int:
    """Serve the runner to the end; the process's exit code."""
    first = wire.receive(control)
    if first is None or first.kind != "start":
        return 1
    call = calls.ChildCall(**first.fields)
    reporting.start(call.log_level)
    stored = shelf.PipeShelf(beside, call.overrides)
    importing.add_shelf(stored)
    if call.is_async is None:
        _Quick(control, stored).live(first.run, call)
    else:
        anyio.run(Host(control, stored).serve, first, backend=backend)
    return 0


class Host:
    """The runs of a child whose main thread has an event loop."""

    def __init__(self, control: socket.socket, stored: shelf.PipeShelf) -> None:
        self.shelf = stored
        self._control = control
        self._runs: dict[int, InsideRun] = {}
        self._asked: dict[int, tuple[anyio.Event, list[dict[str, Any]]]] = {}
        self._numbers = itertools.count(1)
        self._over: anyio.Event
        self._tasks: anyio.abc.TaskGroup

    async def serve(self, first: wire.Frame) -> None:
        self._over = anyio.Event()
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._heed_term)
            self._begin(first)
            self._tasks.start_soon(self._read)
            await self._over.wait()
            self._tasks.cancel_scope.cancel()

    async def _heed_term(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                for run in self._runs.values():
                    run.cancel()

    async def _read(self) -> None:
        async for frame in heard(self._control):
            self._handle(frame)
        self._over.set()  # the runner is gone

    def _handle(self, frame: wire.Frame) -> None:
        run = self._runs.get(frame.run)
        if frame.kind == "start":
            self.shelf.refresh(frame.fields["overrides"])
            self._begin(frame)
        elif frame.kind == "exit":
            self._over.set()
        elif frame.kind == "answer":
            waiting = self._asked.pop(frame.fields.pop("id"), None)
            if waiting is not None:
                waiting[1].append(frame.fields)
                waiting[0].set()
        elif run is not None and frame.kind == "stop":
            run.cancel()
        elif run is not None and frame.kind == "lost":
            run.lose(frame.fields["why"])
        elif run is not None and frame.kind == "claim":
            self._tasks.start_soon(run.give_claim, frame.fields)
        elif run is not None and frame.kind == "state":
            run.tell_state(calls.state_of(frame.fields["state"]))

    def _begin(self, frame: wire.Frame) -> None:
        run = InsideRun(self, frame.run, calls.ChildCall(**frame.fields))
        self._runs[frame.run] = run
        self._tasks.start_soon(run.work)

    def run_over(self, number: int, is_shared: bool) -> None:
        del self._runs[number]
        if not is_shared:
            self._over.set()

    def start_soon(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.start_soon(work)

    def send(self, kind: str, run: int, **fields: Any) -> None:
        """Blocks while the runner does not read, which is never for long."""
        self._control.sendall(wire.packed(kind, run, **fields))

    async def ask(self, run: int, what: str) -> None:
        """Have the runner do something for a run. Raises what that raised there."""
        number = next(self._numbers)
        answers: list[dict[str, Any]] = []
        self._asked[number] = (anyio.Event(), answers)
        self.send("ask", run, id=number, what=what)
        await self._asked[number][0].wait()
        calls.raise_answer(answers[0])


class InsideRun:
    """One run in a child's event loop."""

    def __init__(self, host: Host, number: int, call: calls.ChildCall) -> None:
        self._host = host
        self._number = number
        self._call = call
        self._scope = anyio.CancelScope()
        self._admin: admin.CallAdmin | None = None
        self._client: Client | None = None
        self._own: script_client.ScriptClient | None = None
        # Given before there was a client.
        self._late: dict[str, Any] | None = None
        self._state = calls.state_of(call.state)

    def cancel(self) -> None:
        self._scope.cancel()

    def lose(self, why: str) -> None:
        """The job is another runner's: end, with calls that say so."""
        if self._own is not None:
            self._own.lose(why)
        self._scope.cancel()

    async def give_claim(self, fields: dict[str, Any]) -> None:
        """It began without a claim, and has this one now."""
        if self._client is None or self._own is None:
            self._late = fields
            return
        await give_claim(self._own, self._client, fields)

    def tell_state(self, state: messages.ActorState) -> None:
        self._state = state
        if self._admin is None:
            return
        if isinstance(state, messages.BrokenState):
            self._host.start_soon(self._tell_when_seen)
        else:
            self._admin.tell_state(state)

    async def _tell_when_seen(self) -> None:
        """The runner's line has broken. A script that is told so may rely on that this line has,
        too, if it is about to: it sees that with its next request."""
        if self._client is not None:
            with anyio.move_on_after(LOOK_S), contextlib.suppress(errors.MoatKvError):
                await self._client.request("ping", {})
        if self._admin is not None:
            self._admin.tell_state(self._state)

    async def work(self) -> None:
        outcome: tuple[str, dict[str, Any]] = ("cut_off", {})
        with self._scope:
            try:
                outcome = ("result", {"packed": codec.pack(await self._execute())})
            except Exception as exc:
                outcome = ("failed", failure_of(exc, self._call))
        self._host.send(outcome[0], self._number, **outcome[1])
        self._host.run_over(self._number, self._call.is_shared)

    async def _execute(self) -> Any:
        call, host = self._call, self._host
        async with bound_client(call) as (client, unbound):
            self._client, self._own = unbound, client
            if self._late is not None:
                await self.give_claim(self._late)
            self._admin = admin.CallAdmin(
                admin.RunFacts(
                    client=client,
                    runner_client=unbound,
                    places=Places(**call.places),
                    node=call.node,
                    path=call.job,
                    fence=call.fence,
                    every_node=call.every_node,
                    queue_limit=call.queue_limit,
                    work_well=lambda: host.ask(self._number, "work_well"),
                ),
                state=self._state,
            )
            return await execution.perform(
                made_call(call),
                self._admin,
                client=client,
                load=lambda: host.shelf.load(call.required, needed_by=call.name),
                config=script_config.View(call.config),
                begins=lambda: host.send("begun", self._number),
            )


class _Quick:
    """A synchronous script in the main thread; only the system's signals reach it there."""

    def __init__(self, control: socket.socket, stored: shelf.PipeShelf) -> None:
        self._control = control
        self._shelf = stored

    def live(self, number: int, call: calls.ChildCall) -> None:
        outcome: tuple[str, dict[str, Any]] = ("cut_off", {})
        try:
            outcome = self._outcome(number, call)
            # Nothing is left to be unwound.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        except execution.Stopped:
            pass  # which comes once
        self._send(outcome[0], number, **outcome[1])

    def _outcome(self, number: int, call: calls.ChildCall) -> tuple[str, dict[str, Any]]:
        # Neither is left: the process ends, and with it whatever still waits in threads.
        held = contextlib.ExitStack()
        try:
            portal = held.enter_context(anyio.from_thread.start_blocking_portal())
            bound = portal.wrap_async_context_manager(bound_client(call))
            client, unbound = held.enter_context(bound)
            portal.start_task_soon(self._heed_runner, client, unbound)
            self._shelf.load(call.required, needed_by=call.name)
            given = execution.common_names(call.job, script_config.View(call.config))
            unwinding_ = unwinding.Unwinding()
            given["_client"] = blocking.Client(portal, client, waits=unwinding_.wait)
            run = made_call(call).procedure.bind({**call.values, **given})
            self._send("begun", number)
            unwinding_.begin()
            result = execution.checked_result(execution.called(run), client)
            return "result", {"packed": codec.pack(result)}
        except Exception as exc:
            return "failed", failure_of(exc, call)

    async def _heed_runner(self, own: script_client.ScriptClient, client: Client) -> None:
        """Beside the script, in its client's loop: what the runner says of its claim."""
        async for frame in heard(self._control):
            if frame.kind == "claim":
                await give_claim(own, client, frame.fields)
            elif frame.kind == "lost":
                own.lose(frame.fields["why"])

    def _send(self, kind: str, run: int, **fields: Any) -> None:
        self._control.sendall(wire.packed(kind, run, **fields))


async def heard(control: socket.socket) -> AsyncIterator[wire.Frame]:
    """What the runner says, until it is gone."""
    reader = wire.Reader()
    while True:
        await anyio.wait_readable(control)
        try:
            data = control.recv(wire.READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        except OSError:
            return
        if not data:
            return
        for frame in reader.feed(data):
            yield frame


async def give_claim(
    own: script_client.ScriptClient, client: Client, fields: dict[str, Any]
) -> None:
    """A run that began without a claim has this one now."""
    guard = (fields["claim"], fields["fence"])
    # From now on every write is refused if the claim has passed on, whatever the server says.
    own.give_claim(guard)
    for _ in range(BIND_TRIES):
        try:
            await client.bind_line(guard, fields["token"])
            return
        except errors.MoatKvError as exc:
            # This line's server may be another one than the runner's, and a little behind.
            logger.info("the line is not bound yet: %s", exc)
        await anyio.sleep(LOOK_S)


def made_call(call: calls.ChildCall) -> readiness.Call:
    procedure = compiling.compile_procedure(
        call.text,
        name=call.name,
        is_async=call.is_async,
        variables=call.parameters,
        rev=call.rev,
    )
    return readiness.Call(procedure=procedure, variables=call.values, needs=requires.Needs())


@contextlib.asynccontextmanager
async def bound_client(
    call: calls.ChildCall,
) -> AsyncIterator[tuple[script_client.ScriptClient, Client]]:
    """A client as scripts have it, and the same without its patience; both on a bound line.

    Where there is no claim (its fence is 0) the line is not bound. The next may be a user's code.
    """
    config = Config(runner=RunnerConfig(name=call.node, queue=call.queue_limit))
    guard = (call.claim, call.fence)
    async with open_client(
        call.urls,
        name=f"{call.node}:{call.job}",
        config=config,
        connect_timeout_s=CONNECT_S,
        wait=True,
        # Another server of the network may not know of the claim yet.
        seen=results.Mark(rev=call.fence, epoch=call.epoch),
    ) as client:
        binding: writes.Binding = script_client.LateBinding()
        if call.fence:
            await client.bind_line(guard, call.token)
            binding = writes.Binding(fence=guard)
        own = script_client.ScriptClient(client.shared, binding, session=RunnersSession())
        child.wait_until_held()
        yield own, client


class RunnersSession:
    """The session that the run hangs on is its runner's, which ends this process with it."""

    def __init__(self) -> None:
        self.lost = anyio.Event()
        self.ended = False


def failure_of(error: Exception, call: calls.ChildCall) -> dict[str, Any]:
    cause = execution.cause_of(error)
    claim = claiming.Claim(call.claim, call.fence)
    return calls.failure_facts(cause, is_loss=holding.is_loss(error, claim))
