"""The simulated bus as a process: `python -m moat_kv.testing.onewire --port N`.

Started by demonstrations and by tests that need the bus outside of their own process. It prints
one JSON line with its host and port when it listens, then takes one command a line from standard
input and answers each with one line. It ends on SIGTERM, SIGINT or `{"do": "exit"}`; the end of
its input does not end it.

A command is a mapping with `do` and the arguments of the method of that name:
`{"do": "unplug", "name": "28.0000BEDC0001"}`. `{"do": "state"}` tells what is there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import signal
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from anyio.from_thread import BlockingPortal
from anyio.streams.memory import MemoryObjectSendStream

from moat_kv.testing.onewire import devices
from moat_kv.testing.onewire.server import (
    DEFAULT_DEVICES,
    SimulatedBus,
    plug_in,
    read_devices,
)

#: The methods that a command may name; everything else is refused.
COMMANDS = (
    "add",
    "remove",
    "unplug",
    "replug",
    "set_temperature",
    "drift",
    "set_measured",
    "set_output",
    "set_input",
    "delay",
    "fail",
    "mend",
    "hold",
    "release",
    "drop",
    "cut",
    "refuse",
    "start",
    "stop",
)

#: The attributes that `{"do": "set", ...}` may change; all are true or false.
SWITCHES = ("persistence", "slam", "pings")


def describe(bus: SimulatedBus) -> dict[str, Any]:
    """What is there now, as it is printed for `state`."""
    shown: dict[str, Any] = {}
    for name in bus.all_names():
        device = bus.device(name)
        facts: dict[str, Any] = {"plugged": bus.is_plugged(name), "chip": device.chip}
        if isinstance(device, devices.TemperatureSensor):
            facts["temperature"] = round(device.celsius, 4)
        elif isinstance(device, devices.Switch):
            facts["outputs"] = list(device.outputs)
            facts["sensed"] = device.sensed
        elif isinstance(device, devices.BatteryMonitor):
            facts |= device.measured
        shown[name] = facts
    return {"connections": bus.connections, "accepted": bus.accepted, "devices": shown}


async def obey(bus: SimulatedBus, line: str) -> dict[str, Any]:
    """Carry one command out and give its answer; a bad one is told, not raised."""
    try:
        command = json.loads(line)
        if not isinstance(command, dict) or "do" not in command:
            raise ValueError('a command is like {"do": "unplug", "name": "28.0123456789AB"}')
        do = command.pop("do")
        if do == "state":
            return {"ok": True, **describe(bus)}
        if do == "set":
            for key, value in command.items():
                if key not in SWITCHES or not isinstance(value, bool):
                    raise ValueError(f"set takes true or false for {', '.join(SWITCHES)}")
                setattr(bus, key, value)
            return {"ok": True}
        if do not in COMMANDS:
            known = ", ".join([*COMMANDS, "set", "state"])
            raise ValueError(f"unknown command {do!r}; known: {known}")
        result = getattr(bus, do)(**command)
        if inspect.isawaitable(result):
            await result
        bus.notify()
    except (ValueError, TypeError) as error:
        return {"ok": False, "error": str(error)}
    return {"ok": True}


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _read_input(portal: BlockingPortal, chunks: MemoryObjectSendStream[bytes]) -> None:
    """Hand on what comes on standard input, until it ends or the portal does.

    Runs in a daemon thread, which may still sit in its read when the process ends: anyio's own
    worker threads would be waited for, readiness cannot be asked of /dev/null or a file, and
    a thread inside sys.stdin would hold its lock.
    """
    try:
        while chunk := os.read(0, 65536):
            portal.call(chunks.send_nowait, chunk)
    except OSError:  # there is no input
        return
    except (RuntimeError, CancelledError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return  # the bus has ended


async def _commands(bus: SimulatedBus, scope: anyio.CancelScope) -> None:
    sender, receiver = anyio.create_memory_object_stream[bytes](math.inf)
    rest = b""
    async with BlockingPortal() as portal, sender, receiver:
        threading.Thread(target=_read_input, args=(portal, sender), daemon=True).start()
        async for chunk in receiver:
            *lines, rest = (rest + chunk).split(b"\n")
            for raw in lines:
                line = raw.decode("utf-8", "replace").strip()
                if line.replace(" ", "") == '{"do":"exit"}':
                    _say({"ok": True})
                    scope.cancel()
                    return
                if line:
                    _say(await obey(bus, line))


async def _signals(scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()
            return


async def serve(host: str, port: int, wanted: list[Any]) -> None:
    """Run the bus until it is told to end."""
    bus = SimulatedBus(host, port)
    plug_in(bus, wanted)
    async with anyio.create_task_group() as tasks:
        await tasks.start(_signals, tasks.cancel_scope)
        async with bus.running():
            _say({"host": bus.host, "port": bus.port})
            tasks.start_soon(_commands, bus, tasks.cancel_scope)
            await anyio.sleep_forever()


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit code; bad usage ends the process with 2."""
    parser = argparse.ArgumentParser(
        prog="python -m moat_kv.testing.onewire",
        description="A simulated 1-wire bus that speaks owserver's protocol.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=int, default=0, help="port; 0, the default, takes a free one"
    )
    parser.add_argument(
        "--devices", default="default", help="a JSON file with a list of devices, or 'default'"
    )
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    args = parser.parse_args(argv)
    try:
        text = None if args.devices == "default" else Path(args.devices).read_text()
        wanted = list(DEFAULT_DEVICES) if text is None else read_devices(text)
    except (OSError, ValueError) as error:
        parser.error(f"{args.devices}: {error}")
    failed: BaseException | None = None
    try:
        anyio.run(serve, args.host, args.port, wanted, backend=args.backend)
    except* (OSError, ValueError) as group:
        failed = group
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    if isinstance(failed, OSError):
        parser.error(f"cannot listen on {args.host} port {args.port}: {failed}")
    if failed is not None:
        parser.error(f"{args.devices}: {failed}")
    return 0
