"""From one request to its replies: the simulated bus without its sockets.

`server.py` hands in requests, in the order in which they are to happen, and sends what comes
back. This module holds the devices, which of them are plugged in, and the faults; it waits for
nothing, so a delay is only told (`wait_s`), and the sender keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from moat_kv.testing.onewire import devices, names, tree
from moat_kv.testing.onewire.devices import Device
from moat_kv.testing.onewire.faults import Faults
from moat_kv.testing.onewire.protocol import Code, Flag, Kind, OwFault, Reply, Request

_LISTINGS = {Kind.DIR, Kind.DIRALL, Kind.DIRALLSLASH}
_GETS = {Kind.GET, Kind.GETSLASH}
_SLASHED = {Kind.DIRALLSLASH, Kind.GETSLASH}


class Bus:
    """Devices on one or more buses, and what is wrong with them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._devices: dict[str, Device] = {}
        self._bus_of: dict[str, int] = {}
        self._unplugged: set[str] = set()
        self.faults = Faults()

    # What hangs on it

    def add(self, name: str, bus: int = 0) -> Device:
        """Plug in a new device; `name` in any format. Raises ValueError if it cannot be one."""
        canonical = names.parse_name(name)
        if canonical is None:
            raise ValueError(f"not a device name: {name!r} (like 28.0123456789AB)")
        if canonical in self._devices:
            raise ValueError(f"there is a {canonical} already")
        family = devices.FAMILIES.get(canonical[:2])
        if family is None:
            known = ", ".join(sorted(devices.FAMILIES))
            raise ValueError(f"{canonical}: the families here are {known}")
        device = self._devices[canonical] = family(canonical, self._clock)
        self._bus_of[canonical] = bus
        return device

    def remove(self, name: str) -> None:
        """Forget a device, what was written to it and its faults."""
        device = self.device(name)
        del self._devices[device.name], self._bus_of[device.name]
        self._unplugged.discard(device.name)
        self.faults.mend(device.name)

    def unplug(self, name: str) -> None:
        self._unplugged.add(self.device(name).name)

    def replug(self, name: str, *, power_lost: bool = False) -> None:
        """Plug in again; with `power_lost` without what the chip forgets then."""
        device = self.device(name)
        if power_lost:
            device.power_cycle()
        self._unplugged.discard(device.name)

    def device(self, name: str) -> Device:
        """A device by name, plugged in or not. Raises ValueError if there is none."""
        device = self._devices.get(names.parse_name(name) or "")
        if device is None:
            raise ValueError(f"there is no device {name}")
        return device

    def all_names(self) -> list[str]:
        return list(self._devices)

    def is_plugged(self, name: str) -> bool:
        return self.device(name).name not in self._unplugged

    def plugged(self, bus: int | None = None) -> list[Device]:
        return [
            device
            for name, device in self._devices.items()
            if name not in self._unplugged and bus in (None, self._bus_of[name])
        ]

    def lookup(self, name: str, bus: int | None = None) -> Device | None:
        if name in self._unplugged or bus not in (None, self._bus_of.get(name)):
            return None
        return self._devices.get(name)

    def bus_numbers(self) -> list[int]:
        return sorted({0, *self._bus_of.values()})

    # Requests

    def wait_s(self, request: Request) -> float:
        """How long the answer to that request is to wait at present, in seconds."""
        if request.path is None or request.kind == Kind.NOP:
            return self.faults.wait_s(None)
        try:
            node, _ = tree.find(self, request.path)
        except OwFault:
            return self.faults.wait_s(None)
        return self.faults.wait_s(None if node.device is None else node.device.name)

    def answer(self, request: Request) -> list[Reply]:
        """Carry a request out. Errors are replies too: nothing is raised for what a client does."""
        try:
            return list(self._answer(request))
        except OwFault as fault:
            return [Reply(flags=request.flags, ret=-fault.code)]

    def _answer(self, request: Request) -> Iterator[Reply]:
        if request.kind == Kind.NOP:
            return iter([Reply(flags=request.flags)])
        if request.kind not in Kind.__members__.values() or request.kind == Kind.SIZE:
            raise OwFault(Code.NO_MESSAGE)  # owserver 3.2 knows SIZE no more
        if request.path is None:
            raise OwFault(Code.BAD_MESSAGE)
        node, clean = tree.find(self, request.path)
        kind = Kind(request.kind)
        if kind in _GETS:
            kind_here = Kind.DIRALL if isinstance(node, tree.Folder) else Kind.READ
        else:
            kind_here = kind
        if kind_here in _LISTINGS:
            return self._list(request, node, clean, one_by_one=kind is Kind.DIR)
        if kind_here == Kind.PRESENT:
            return iter([self._present(request, node)])
        if not isinstance(node, tree.Leaf):
            raise OwFault(Code.IS_A_DIRECTORY)
        if kind_here == Kind.WRITE:
            return iter([self._write(request, node)])
        return iter([self._read(request, node)])

    def _use(self, node: tree.Node, operation: str) -> None:
        if node.on_bus:
            self.faults.check(None if node.device is None else node.device.name, operation)

    def _list(
        self, request: Request, node: tree.Node, clean: str, one_by_one: bool
    ) -> Iterator[Reply]:
        if not isinstance(node, tree.Folder):
            raise OwFault(Code.NOT_A_DIRECTORY)
        self._use(node, "list")
        slash = "/" if request.kind in _SLASHED else ""
        system = bool(request.flags & Flag.BUS_RETURN)
        texts = [
            f"{clean}/{entry.name}{slash if entry.folder else ''}".encode()
            for entry in node.entries(request.name_format, system)
        ]
        flags = request.flags
        if one_by_one:
            for text in texts:
                yield Reply(flags=flags, payload=text + b"\0", size=len(text))
            yield Reply(flags=flags, offset=node.abilities)
            return
        whole = b",".join(texts)
        payload = whole + b"\0" if texts else b""
        yield Reply(flags=flags, payload=payload, size=len(whole), offset=node.abilities)

    def _present(self, request: Request, node: tree.Node) -> Reply:
        if node.device is None:
            return Reply(flags=request.flags, payload=bytes(8))
        self.faults.check(node.device.name, "present")
        return Reply(flags=request.flags, payload=names.address(node.device.name))

    def _read(self, request: Request, leaf: tree.Leaf) -> Reply:
        if request.size <= 0 or request.offset < 0:
            raise OwFault(Code.BAD_SIZE)
        self._use(leaf, "read")
        whole = leaf.read(request.scale)
        part = whole[request.offset : request.offset + request.size]
        if not part:
            return Reply(flags=request.flags)
        size = len(part)
        return Reply(flags=request.flags, ret=size, payload=part, size=size, offset=request.offset)

    def _write(self, request: Request, leaf: tree.Leaf) -> Reply:
        self._use(leaf, "write")
        leaf.write(request.data, request.scale)
        return Reply(flags=request.flags, size=len(request.data))
