"""The simulated bus on a TCP port: connections, delays, and the line's own faults.

Made by tests with `running_bus`, and by `process.py` for demonstrations; what requests mean is
`answers.py`'s. Runs on asyncio and trio. Nothing here is safe to use from a second thread.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc

from moat_kv.testing.onewire import devices
from moat_kv.testing.onewire.answers import Bus
from moat_kv.testing.onewire.protocol import (
    BadPeer,
    Flag,
    Kind,
    Reply,
    Request,
    RequestParser,
    ping,
)

#: The original says "still at it" this often.
PING_S = 1.0

#: What a bus has if nothing else is asked for: two rooms, a flow, switches, a humidity sensor.
DEFAULT_DEVICES: tuple[Mapping[str, Any], ...] = (
    {"name": "10.000010A11CE0", "temperature": 48.5},
    {"name": "28.0000BEDC0001", "temperature": 21.25, "drift": 0.01},
    {"name": "28.0000BEDC0002", "temperature": 18.5, "drift": -0.01},
    {"name": "05.0000501A4900"},
    {"name": "3A.00003A2B0001"},
    {"name": "29.0000290C0001"},
    {"name": "26.000026FE0001", "temperature": 19.0, "humidity": 47.0},
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One request that was answered, for tests to look at. `ret` below 0 is an error."""

    kind: str
    path: str
    data: bytes
    ret: int


@dataclass(frozen=True, slots=True)
class _Listening:
    """An open port; `ended` is set once nothing is accepted any more."""

    listener: anyio.abc.Listener[anyio.abc.SocketStream]
    scope: anyio.CancelScope
    ended: anyio.Event


class SimulatedBus(Bus):
    """A bus with a port. `running_bus` starts and ends it; in between, its methods are the faults.

    `port` stays the same over `stop` and `start`. `persistence` false refuses connections that
    are kept; `slam` true hangs up on each new connection at once; `pings` false leaves clients
    without the sign of life that they otherwise have every `ping_s` during a delay.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self.host = host
        self.port = port
        self.persistence = True
        self.slam = False
        self.pings = True
        self.ping_s = PING_S
        self.connections = 0
        self.accepted = 0
        self.waiting = 0  # requests whose answer is held or delayed now
        self.seen: deque[Seen] = deque(maxlen=10_000)
        self._cuts = 0
        self._changed = anyio.Event()
        self._lines: set[anyio.CancelScope] = set()
        self._listening: _Listening | None = None
        self._tasks: anyio.abc.TaskGroup | None = None

    # Life

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SimulatedBus]:
        """Serve from here to the end of the block; then close everything."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                await self.start()
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self.stop()
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def start(self) -> None:
        """Listen, on the same port as before. Does nothing while it listens."""
        if self._listening is not None:
            return
        if self._tasks is None:
            raise RuntimeError("not running: enter running() first")
        listener = await anyio.create_tcp_listener(local_host=self.host, local_port=self.port)
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        self._listening = _Listening(listener, anyio.CancelScope(), anyio.Event())
        self._tasks.start_soon(self._listen, self._listening, self._tasks)
        self.notify()

    async def refuse(self) -> None:
        """Refuse new connections; those that are there go on. `start` ends it."""
        if self._listening is None:
            return
        listening, self._listening = self._listening, None
        listening.scope.cancel()
        await listening.ended.wait()  # closing a listener that still accepts is an error to it
        await listening.listener.aclose()
        self.notify()

    async def stop(self) -> None:
        """Refuse new connections and drop those that are there, as a server that has ended."""
        await self.refuse()
        self.drop()
        while self.connections:
            await self._wait()

    # Faults, beside those of `answers.Bus`

    def drop(self) -> None:
        """Break every connection; new ones are welcome."""
        for scope in self._lines:
            scope.cancel()

    def cut(self, times: int = 1) -> None:
        """Break the connection in the middle of each of the next answers."""
        self._cuts += times

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self.faults.held = True
        self.notify()

    def release(self) -> None:
        self.faults.held = False
        self.notify()

    def delay(self, seconds: float, device: str | None = None) -> None:
        """Wait before each answer, or each that concerns one device; 0 ends it."""
        name = None if device is None else self.device(device).name
        self.faults.delays_s[name] = seconds
        self.notify()

    def fail(
        self,
        code: int,
        device: str | None = None,
        *,
        operations: Iterable[str] = ("list", "read", "write", "present"),
        times: int | None = None,
    ) -> None:
        """Answer with an owserver error instead, for one device or all that uses the bus."""
        name = None if device is None else self.device(device).name
        self.faults.fail(name, code, frozenset(operations), times)

    def mend(self, device: str | None = None) -> None:
        """End the failure and the delay of one device, or of the bus."""
        self.faults.mend(None if device is None else self.device(device).name)
        self.notify()

    # What the world does to devices

    def set_temperature(self, name: str, celsius: float) -> None:
        device = self.device(name)
        if isinstance(device, devices.BatteryMonitor):
            device.set("temperature", celsius)
        else:
            self._sensor(name).set_temperature(celsius)
        self.notify()

    def drift(self, name: str, celsius_per_s: float) -> None:
        self._sensor(name).set_drift(celsius_per_s)
        self.notify()

    def set_measured(self, name: str, what: str, value: float) -> None:
        """Set a voltage or the humidity of a battery monitor."""
        device = self.device(name)
        if not isinstance(device, devices.BatteryMonitor):
            raise ValueError(f"{device.name} measures no {what}")
        device.set(what, value)
        self.notify()

    def set_output(self, name: str, on: bool, channel: int = 0) -> None:
        """Switch an output as another client of the bus would."""
        self._switch(name).set_output(channel, on)
        self.notify()

    def set_input(self, name: str, high: bool, channel: int = 0) -> None:
        """Set the level that the world gives a switch's pin."""
        self._switch(name).set_input(channel, high)
        self.notify()

    def outputs(self, name: str) -> list[bool]:
        return list(self._switch(name).outputs)

    def _sensor(self, name: str) -> devices.TemperatureSensor:
        device = self.device(name)
        if not isinstance(device, devices.TemperatureSensor):
            raise ValueError(f"{device.name} is no temperature sensor")
        return device

    def _switch(self, name: str) -> devices.Switch:
        device = self.device(name)
        if not isinstance(device, devices.Switch):
            raise ValueError(f"{device.name} is no switch")
        return device

    # Watching it

    def notify(self) -> None:
        """Wake whoever waits in `until`, and every delayed answer, to look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()

    async def until(self, true: Callable[[], bool]) -> None:
        """Return once that holds; asked again after each request and each change."""
        while not true():
            await self._wait()

    def requests(self, kind: str, ending: str = "") -> list[Seen]:
        """The requests of that kind ("READ", "WRITE", ...) to paths with that ending so far."""
        return [seen for seen in self.seen if seen.kind == kind and seen.path.endswith(ending)]

    # Connections

    async def _listen(self, listening: _Listening, tasks: anyio.abc.TaskGroup) -> None:
        try:
            with listening.scope:
                await listening.listener.serve(self._connection, tasks)
        finally:
            listening.ended.set()

    async def _connection(self, stream: anyio.abc.SocketStream) -> None:
        self.accepted += 1
        self.connections += 1
        scope = anyio.CancelScope()
        self._lines.add(scope)
        self.notify()
        try:
            with scope, contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream, BadPeer):
                async with stream:
                    if not self.slam:
                        await self._serve(stream)
        finally:
            self._lines.discard(scope)
            self.connections -= 1
            self.notify()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        parser = RequestParser()
        while True:
            for request in parser.feed(await stream.receive()):
                await self._pause(stream, request)
                await self._reply(stream, request)
                if not (request.persistent and self.persistence):
                    return

    async def _pause(self, stream: anyio.abc.SocketStream, request: Request) -> None:
        if self.wait_s(request) <= 0:
            return
        self.waiting += 1
        self.notify()
        try:
            await self._wait_out(stream, request)
        finally:
            self.waiting -= 1

    async def _wait_out(self, stream: anyio.abc.SocketStream, request: Request) -> None:
        began = anyio.current_time()
        next_ping = began + self.ping_s if self.pings else math.inf
        while (end := began + self.wait_s(request)) > (now := anyio.current_time()):
            with anyio.move_on_after(min(end, next_ping) - now):
                await self._wait()
            if anyio.current_time() >= next_ping:
                await stream.send(ping(self._flags(request)))
                next_ping += self.ping_s

    def _flags(self, request: Request) -> int:
        return request.flags if self.persistence else request.flags & ~Flag.PERSIST

    async def _reply(self, stream: anyio.abc.SocketStream, request: Request) -> None:
        replies = self.answer(request)
        flags = self._flags(request)
        data = b"".join(
            Reply(
                flags=flags,
                ret=reply.ret,
                payload=reply.payload,
                size=reply.size,
                offset=reply.offset,
            ).encode()
            for reply in replies
        )
        known = request.kind in Kind.__members__.values()
        kind = Kind(request.kind).name if known else str(request.kind)
        path = request.path or ""
        self.seen.append(Seen(kind=kind, path=path, data=request.data, ret=replies[-1].ret))
        if self._cuts:
            self._cuts -= 1
            await stream.send(data[: len(data) // 2])
            self.notify()
            raise BadPeer("cut, as asked")
        await stream.send(data)
        self.notify()


def plug_in(bus: SimulatedBus, wanted: Iterable[Mapping[str, Any]]) -> None:
    """Add devices from their descriptions.

    Each is a mapping with `name` and, as the device has them, `bus` (number), `temperature`
    (degrees Celsius), `drift` (degrees a second), `outputs` and `inputs` (lists of bool),
    `humidity`, `VAD`, `VDD`, `vis`. Raises ValueError for what it does not know.
    """
    for given in wanted:
        facts = dict(given)
        name = bus.add(str(facts.pop("name", "")), int(facts.pop("bus", 0))).name
        for key, value in facts.items():
            match key:
                case "temperature":
                    bus.set_temperature(name, float(value))
                case "drift":
                    bus.drift(name, float(value))
                case "outputs":
                    for channel, on in enumerate(value):
                        bus.set_output(name, bool(on), channel)
                case "inputs":
                    for channel, high in enumerate(value):
                        bus.set_input(name, bool(high), channel)
                case "humidity" | "VAD" | "VDD" | "vis":
                    bus.set_measured(name, key, float(value))
                case _:
                    raise ValueError(f"{name}: a device has no {key!r}")


def read_devices(text: str) -> list[Mapping[str, Any]]:
    """Device descriptions from JSON text, a list of mappings as `plug_in` takes them."""
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError("a list of mappings is wanted, one a device")
    return found


@contextlib.asynccontextmanager
async def running_bus(
    wanted: Iterable[Mapping[str, Any]] = DEFAULT_DEVICES,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[SimulatedBus]:
    """A simulated bus with these devices, on a free port unless one is given, for the block."""
    bus = SimulatedBus(host, port, clock)
    plug_in(bus, wanted)
    async with bus.running():
        yield bus
