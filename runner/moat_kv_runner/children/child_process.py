"""One child, as its runner sees it: its sockets, its keeper, and its end.

`process_run` makes one for each run, or one for all runs of a share. `live` is a task of the
runner's client. Everything that comes from a child is judged: what is no frame ends the child.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections import deque
from typing import Any, Protocol

import anyio
import anyio.abc

from moat_kv import codec, errors, visible
from moat_kv.code.modules import ModuleRoot
from moat_kv.proto import messages
from moat_kv_runner.children import nursery, reporting, wire

logger = logging.getLogger(__name__)

#: How often a child that does not come to be is asked for.
TRIES = 3
#: How long what a child has printed last may take to be read, in seconds.
DRAIN_S = 0.5
#: What a child may say, beside what it prints: a result, and some questions, in bytes.
BURST_BYTES = 4 * 1024 * 1024
BYTES_PER_S = 64 * 1024
#: The grace of a child that has nothing more to do, in seconds.
EXIT_S = 1.0


class Allowance:
    """How fast something may come: so much at once after a silence, and so much in a second."""

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = burst
        self._at = time.monotonic()

    def pause_s(self, amount: float) -> float:
        """This much has come; for how many seconds to take no more."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s) - amount
        self._at = now
        return max(0.0, -self._left / self._per_s)


class RunOfChild(Protocol):
    """What a run wants to know."""

    def take(self, frame: wire.Frame) -> None: ...
    def printed(self, stream: str, text: str) -> None: ...
    def logged(self, level: int, name: str, text: str) -> None: ...
    def child_over(self, child: ChildProcess) -> None: ...


class ChildProcess:
    """See above."""

    def __init__(self, name: str, modules: ModuleRoot) -> None:
        #: Set when nothing of it is left.
        self.over = anyio.Event()
        #: The keeper's account of its end; None: the keeper itself has gone.
        self.end: dict[str, Any] | None = None
        #: Why it could not be started, or was ended for what it said.
        self.problem: str | None = None
        self.pid: int | None = None
        #: It was told to end.
        self.is_ending = False
        self.runs: dict[int, RunOfChild] = {}
        self._name = name
        self._modules = modules
        self._keeper: socket.socket | None = None
        self._orders: list[bytes] = []
        self._waiting: deque[bytes] = deque()
        # What was sent to a child that may not be there.
        self._unconfirmed: list[bytes] = []
        self._news = anyio.Event()
        self._rate = reporting.Rate()

    @property
    def can_be_joined(self) -> bool:
        """Whether another run may begin in it."""
        return not (self.is_ending or self.over.is_set() or self.problem is not None)

    # For runs -----------------------------------------------------------------------------------

    def send(self, kind: str, run: int, **fields: Any) -> None:
        """Queue a frame. Raises BadValue for what cannot be carried."""
        self._waiting.append(wire.packed(kind, run, **fields))
        self._news.set()

    def stop(self, grace_s: float, *, term: bool = True) -> None:
        """End it and all that it has started: asked (`term`), and killed after the grace."""
        self.is_ending = True
        self._order(grace_s, term=term)

    def _order(self, grace_s: float, *, term: bool) -> None:
        order = wire.packet("stop", grace_s=grace_s, term=term)
        if self._keeper is None:
            self._orders.append(order)
            return
        with contextlib.suppress(OSError):
            self._keeper.send(order)

    # Life ---------------------------------------------------------------------------------------

    async def live(self, request: dict[str, Any], lease_fd: int) -> None:
        """Start it, and see to it until nothing is left of it."""
        try:
            for _ in range(TRIES):
                with contextlib.ExitStack() as held:
                    await self._live(held, request, lease_fd)
                if self.pid is not None or self.is_ending:
                    break
                # The fork server went with what it was asked; there will be another one.
                logger.warning("%s: its process was not started; trying again", self._name)
                self._waiting.extendleft(reversed(self._unconfirmed))
                self._unconfirmed.clear()
                self.problem = None
        except OSError as exc:
            self.problem = f"its process could not be started: {exc}"
        finally:
            self._keeper = None
            self.over.set()
            for run in list(self.runs.values()):
                run.child_over(self)

    async def _live(
        self, held: contextlib.ExitStack, request: dict[str, Any], lease_fd: int
    ) -> None:
        control, control_there = _pair(held, socket.SOCK_STREAM)
        beside, beside_there = _pair(held, socket.SOCK_STREAM)
        keeper, keeper_there = _pair(held, socket.SOCK_SEQPACKET)
        output, output_there = _pipe(held)
        errors_, errors_there = _pipe(held)
        there = [control_there, beside_there, keeper_there]
        try:
            fds = [control_there.fileno(), beside_there.fileno(), output_there, errors_there]
            await nursery.NURSERY.spawn(request, [*fds, keeper_there.fileno(), lease_fd])
        finally:
            os.close(output_there)
            os.close(errors_there)
            for sock in there:
                sock.close()
        self._keeper = keeper
        for order in self._orders:
            with contextlib.suppress(OSError):
                keeper.send(order)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write, control)
            async with anyio.create_task_group() as readers:
                readers.start_soon(self._read, control)
                readers.start_soon(self._answer_imports, beside)
                readers.start_soon(self._read_output, output, "out")
                readers.start_soon(self._read_output, errors_, "err")
                await self._hear_keeper(keeper)
                # Nobody has the other ends any more, so these come to their own ends.
                readers.cancel_scope.deadline = anyio.current_time() + DRAIN_S
            tasks.cancel_scope.cancel()

    async def _hear_keeper(self, keeper: socket.socket) -> None:
        while True:
            await anyio.wait_readable(keeper)
            try:
                data = keeper.recv(wire.PACKET_BYTES)
            except (BlockingIOError, ConnectionResetError):
                # It went without reading its last orders, which is told before what it has said.
                continue
            except OSError:
                return
            if not data:
                return
            report = wire.unpacked(data)
            if report.kind == "pid":
                self.pid = report.fields["pid"]
                self._unconfirmed.clear()
            elif report.kind == "stuck":
                text = "%s: the system does not let go of its processes %s"
                logger.warning(text, self._name, report.fields["pids"])
            elif report.kind == "ended":
                self.end = report.fields
                return

    async def _write(self, control: socket.socket) -> None:
        try:
            while True:
                while self._waiting:
                    frame = self._waiting.popleft()
                    if self.pid is None:
                        self._unconfirmed.append(frame)
                    await _send_all(control, frame)
                self._news = anyio.Event()
                await self._news.wait()
        except OSError:
            return  # its end is told elsewhere

    async def _read(self, control: socket.socket) -> None:
        reader, allowance = wire.Reader(), Allowance(BURST_BYTES, BYTES_PER_S)
        try:
            while data := await _receive(control):
                await anyio.sleep(allowance.pause_s(len(data)))
                for frame in reader.feed(data):
                    run = self.runs.get(frame.run)
                    if run is not None:
                        run.take(frame)
        except errors.MoatKvError as exc:
            self._misbehaved(f"what its process said is not understood: {exc}")
            return
        except (KeyError, TypeError, ValueError) as exc:
            self._misbehaved(f"what its process said is not understood: {exc!r}")
            return
        self._misbehaved("its process has closed its line to the runner")

    def _misbehaved(self, why: str) -> None:
        if self.problem is None:
            self.problem = why
        self._order(EXIT_S, term=False)

    async def _answer_imports(self, beside: socket.socket) -> None:
        reader, allowance = wire.Reader(), Allowance(BURST_BYTES, BYTES_PER_S)
        try:
            while data := await _receive(beside):
                await anyio.sleep(allowance.pause_s(len(data)))
                for frame in reader.feed(data):
                    answer = module_facts(self._modules, str(frame.fields.get("name")))
                    await _send_all(beside, wire.packed("module", **answer))
        except errors.MoatKvError as exc:
            self._misbehaved(f"what its process asked for is not understood: {exc}")
        except OSError:
            return

    async def _read_output(self, output: int, stream: str) -> None:
        printed = functools.partial(self._printed, stream)
        lines = reporting.Lines(printed, self._logged, self._rate)
        try:
            while True:
                await anyio.wait_readable(output)
                try:
                    data = os.read(output, wire.READ_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    break
                lines.feed(data)
                if self.end is None:
                    await anyio.sleep(len(data) / reporting.BYTES_PER_S)
        finally:
            lines.end()

    def _printed(self, stream: str, text: str) -> None:
        for run in self.runs.values():
            run.printed(stream, text)
        shown_on = sys.stdout if stream == "out" else sys.stderr
        with contextlib.suppress(OSError, ValueError):
            # A terminal would obey what else a script may print.
            shown_on.write(f"{visible.made(text) if shown_on.isatty() else text}\n")

    def _logged(self, level: int, name: str, text: str) -> None:
        for run in self.runs.values():
            run.logged(level, name, text)
        logging.getLogger(name or f"{reporting.JOBS}.{self._name}").log(level, "%s", text)


def module_facts(modules: ModuleRoot, name: str) -> dict[str, Any]:
    """A stored module as a child's import is answered; nothing if there is none."""
    try:
        found = modules.stored(name)
        if found is None:
            return {}
        facts = {
            "rev": found.rev,
            "is_package": found.is_package,
            "override": found.override,
            "text": found.code,
        }
        codec.pack(facts)
    except errors.MoatKvError as exc:
        return messages.error_fields(exc)
    return facts


def _pipe(held: contextlib.ExitStack) -> tuple[int, int]:
    """Our end, which does not block, and the child's, which is left to the caller."""
    ours, theirs = os.pipe()
    held.callback(os.close, ours)
    os.set_blocking(ours, False)
    return ours, theirs


def _pair(held: contextlib.ExitStack, kind: int) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    held.callback(ours.close)
    held.callback(theirs.close)
    ours.setblocking(False)
    return ours, theirs


async def _receive(sock: socket.socket) -> bytes:
    """Something of what has come; b"" at the end."""
    while True:
        await anyio.wait_readable(sock)
        try:
            return sock.recv(wire.READ_BYTES)
        except BlockingIOError:
            continue
        except OSError:
            return b""


async def _send_all(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await anyio.wait_writable(sock)
