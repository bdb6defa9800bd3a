"""The folders and files that the simulated bus shows, and how a path finds its way through them.

`answers.py` asks `find` for the node at a path, then reads, writes or lists it. A node knows the
device that it belongs to, if any, and whether using it needs the bus, so that the caller can
apply faults first; it applies none itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from moat_kv.testing.onewire import devices, names
from moat_kv.testing.onewire.devices import Device, Property, TemperatureSensor
from moat_kv.testing.onewire.protocol import Code, OwFault


class Plugged(Protocol):
    """What the tree needs to know of the bus."""

    def plugged(self, bus: int | None = None) -> list[Device]:
        """The devices that are there now, in the order in which they were added."""

    def lookup(self, name: str, bus: int | None = None) -> Device | None:
        """The device of that canonical name, if it is there now."""

    def bus_numbers(self) -> list[int]:
        """The buses, lowest number first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing."""

    name: str
    folder: bool


class Node:
    """Something at a path. `on_bus`: to read, write or list it the bus is used."""

    device: Device | None = None
    on_bus = False


class Leaf(Node):
    """A file."""

    def read(self, scale: int) -> bytes:
        raise OwFault(Code.NOT_SUPPORTED)

    def write(self, data: bytes, scale: int) -> None:
        raise OwFault(Code.NOT_SUPPORTED)


class Folder(Node):
    """A directory; `abilities` is the number that ends a listing of it."""

    abilities = 0

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        """What it holds: device names in `style`; buses and system folders only if `system`."""
        raise NotImplementedError

    def child(self, name: str) -> Node | None:
        raise NotImplementedError


# Devices and their properties -------------------------------------------------------------------


def _bits(prop: Property, data: bytes) -> list[bool]:
    parts = data.split(b",")
    if len(parts) != prop.count:
        raise OwFault(Code.INVALID)
    return [names.read_switch(part) for part in parts]


class PropertyLeaf(Leaf):
    """A device's property, whole, or one element, all, or the byte of an array."""

    def __init__(self, device: Device, name: str, suffix: str) -> None:
        self.device = device
        self._of = device
        self._name = name
        self._prop = device.properties[name]
        self._suffix = suffix
        self.on_bus = self._prop.change != "f"

    def read(self, scale: int) -> bytes:
        prop = self._prop
        if prop.mode == "wo":
            raise OwFault(Code.NOT_SUPPORTED)
        value = self._of.get(self._name)
        if prop.count == 1:
            return _encode(prop.kind, value, scale)
        if self._suffix == ".BYTE":
            return names.write_number(sum(1 << i for i, bit in enumerate(value) if bit))
        if self._suffix == ".ALL":
            return b",".join(b"1" if bit else b"0" for bit in value)
        return b"1" if value[self._index()] else b"0"

    def write(self, data: bytes, scale: int) -> None:
        prop = self._prop
        if prop.mode == "ro":
            raise OwFault(Code.NOT_SUPPORTED)
        if prop.count == 1:
            self._of.put(self._name, _decode(prop.kind, data, scale))
        elif self._suffix == ".BYTE":
            number = int(names.read_number(data))
            self._of.put(self._name, [bool(number >> i & 1) for i in range(prop.count)])
        elif self._suffix == ".ALL":
            self._of.put(self._name, _bits(prop, data))
        else:
            value = list(self._of.get(self._name))
            value[self._index()] = names.read_switch(data)
            self._of.put(self._name, value)

    def _index(self) -> int:
        text = self._suffix[1:]
        return ord(text) - ord("A") if self._prop.letters else int(text)


def _encode(kind: str, value: Any, scale: int) -> bytes:
    if kind == "t":
        return names.write_number(names.to_scale(value, scale))
    if kind in "fu":
        return names.write_number(value)
    if kind == "y":
        return b"1" if value else b"0"
    return str(value).encode()


def _decode(kind: str, data: bytes, scale: int) -> Any:
    if kind == "t":
        return names.from_scale(names.read_number(data), scale)
    if kind == "f":
        return names.read_number(data)
    if kind == "u":
        return int(names.read_number(data))
    if kind == "y":
        return names.read_switch(data)
    return data.decode("utf-8", "replace")


def _first_parts(paths: Iterable[str], prefix: str) -> Iterator[Entry]:
    """The names directly below a prefix, each once, folders told from files."""
    seen: set[str] = set()
    for path in paths:
        if not path.startswith(prefix):
            continue
        name, slash, _ = path[len(prefix) :].partition("/")
        if name not in seen:
            seen.add(name)
            yield Entry(name, bool(slash))


def _files(properties: Iterable[tuple[str, Property]]) -> dict[str, tuple[str, str]]:
    """File names as listed, each with the property and the suffix that it stands for."""
    return {
        name + suffix: (name, suffix) for name, prop in properties for suffix in prop.suffixes()
    }


class DeviceFolder(Folder):
    """A device's properties, or those below one of its sub-folders."""

    def __init__(self, device: Device, prefix: str = "") -> None:
        self.device = device
        self._of = device
        self._prefix = prefix
        self._table = _files(device.properties.items())

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        return _first_parts(self._table, self._prefix)

    def child(self, name: str) -> Node | None:
        full = self._prefix + name
        if full in self._table:
            return PropertyLeaf(self._of, *self._table[full])
        if any(path.startswith(full + "/") for path in self._table):
            return DeviceFolder(self._of, full + "/")
        return None


# Below /structure -------------------------------------------------------------------------------


class StructureLeaf(Leaf):
    """The description of one property: type, index, size of the array, mode, length, change."""

    def __init__(self, prop: Property, suffix: str) -> None:
        self._prop = prop
        self._suffix = suffix

    def read(self, scale: int) -> bytes:
        prop = self._prop
        index = {".BYTE": -2, ".ALL": -1}.get(self._suffix, 0)
        length = {-2: 12, -1: 2 * prop.count - 1, 0: prop.size}[index]
        sign = "-" if index < 0 else ""
        text = f"{prop.kind},{sign}{abs(index):06},{prop.count:06},{prop.mode},{length:06},"
        return f"{text}{prop.change},".encode()


class StructureFamily(Folder):
    """One family's properties; of an array only the first element is listed."""

    def __init__(self, family: str, prefix: str = "") -> None:
        self._properties = devices.FAMILIES[family].properties
        self._family = family
        self._prefix = prefix
        self._table = {
            listed: (name, suffix)
            for listed, (name, suffix) in _files(self._properties.items()).items()
            if suffix in self._properties[name].suffixes()[:3]
        }

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        return _first_parts(self._table, self._prefix)

    def child(self, name: str) -> Node | None:
        full = self._prefix + name
        if full in self._table:
            prop, suffix = self._table[full]
            return StructureLeaf(self._properties[prop], suffix)
        if any(path.startswith(full + "/") for path in self._table):
            return StructureFamily(self._family, full + "/")
        return None


class Structure(Folder):
    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        return (Entry(family, True) for family in sorted(devices.FAMILIES))

    def child(self, name: str) -> Node | None:
        return StructureFamily(name) if name in devices.FAMILIES else None


# Whole buses ------------------------------------------------------------------------------------


class Simultaneous(Folder):
    """Commands to all devices at once; here the one that makes all sensors convert."""

    def __init__(self, bus: Plugged, number: int | None) -> None:
        self._bus = bus
        self._number = number

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        yield Entry("temperature", False)

    def child(self, name: str) -> Node | None:
        return Convert(self._bus, self._number) if name == "temperature" else None


class Convert(Leaf):
    on_bus = True

    def __init__(self, bus: Plugged, number: int | None) -> None:
        self._bus = bus
        self._number = number

    def read(self, scale: int) -> bytes:
        return b"0"

    def write(self, data: bytes, scale: int) -> None:
        if not names.read_switch(data):
            return
        for device in self._bus.plugged(self._number):
            if isinstance(device, TemperatureSensor):
                device.convert()


class DeviceList(Folder):
    """The devices of one bus, or of all; with `alarm`, those that have one."""

    on_bus = True

    def __init__(self, bus: Plugged, number: int | None = None, alarm: bool = False) -> None:
        self._bus = bus
        self._number = number
        self._alarm = alarm
        self.abilities = 0
        for device in self._here():
            self.abilities |= device.abilities

    def _here(self) -> list[Device]:
        found = self._bus.plugged(self._number)
        return [device for device in found if device.alarming] if self._alarm else found

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        for device in self._here():
            yield Entry(names.format_name(device.name, style), True)

    def child(self, name: str) -> Node | None:
        canonical = names.parse_name(name)
        device = None if canonical is None else self._bus.lookup(canonical, self._number)
        return None if device is None else DeviceFolder(device)


class BusFolder(DeviceList):
    """`/bus.N`: its devices, and its own simultaneous and alarm."""

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        yield from super().entries(style, system)
        yield Entry("simultaneous", True)
        yield Entry("alarm", True)

    def child(self, name: str) -> Node | None:
        if name == "simultaneous":
            return Simultaneous(self._bus, self._number)
        if name == "alarm":
            return DeviceList(self._bus, self._number, alarm=True)
        return super().child(name)


class Root(DeviceList):
    """`/`, and `/uncached`, which shows the same: nothing here is ever cached."""

    def __init__(self, bus: Plugged, uncached: bool = False) -> None:
        super().__init__(bus)
        self._uncached = uncached

    def entries(self, style: int, system: bool) -> Iterator[Entry]:
        yield from super().entries(style, system)
        if not system:
            return
        for number in self._bus.bus_numbers():
            yield Entry(f"bus.{number}", True)
        if not self._uncached:
            yield Entry("uncached", True)
        for name in ("structure", "simultaneous", "alarm"):
            yield Entry(name, True)

    def child(self, name: str) -> Node | None:
        match name:
            case "uncached":
                return None if self._uncached else Root(self._bus, uncached=True)
            case "structure":
                return Structure()
            case "simultaneous":
                return Simultaneous(self._bus, None)
            case "alarm":
                return DeviceList(self._bus, alarm=True)
        word, dot, number = name.partition(".")
        if word == "bus" and dot and number.isdecimal():
            here = int(number) in self._bus.bus_numbers()
            return BusFolder(self._bus, int(number)) if here else None
        return super().child(name)


def find(bus: Plugged, path: str) -> tuple[Node, str]:
    """The node at a path, and the path written out cleanly, without a slash at its end.

    Raises OwFault NOT_FOUND, or NOT_A_DIRECTORY for a path that goes on below a file.
    """
    node: Node = Root(bus)
    clean = ""
    for part in path.split("/"):
        if not part:
            continue
        if not isinstance(node, Folder):
            raise OwFault(Code.NOT_A_DIRECTORY)
        below = node.child(part)
        if below is None:
            raise OwFault(Code.NOT_FOUND)
        node = below
        clean += f"/{part}"
    return node, clean
