"""Thermometers and switches on a 1-wire bus, by name, over one owserver.

Stored as the module `onewire.bus`; the procedures `onewire.temperatures` and `onewire.switches`
use it. It knows which families measure and which switch, and keeps nothing between calls but
the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from onewire.owserver import OwError, OwGone, Owserver

__all__ = ["CHANNELS", "THERMOMETERS", "Bus", "Device", "OwError", "OwGone", "device_of"]

#: Families that answer to `temperature`: DS18S20, DS1822, DS2438, DS18B20, DS1825, DS28EA00.
THERMOMETERS = ("10", "22", "26", "28", "3B", "42")

#: The outputs of each family of switches: DS2405, DS2406, DS28E04, DS2408, DS2413.
CHANNELS: dict[str, tuple[str, ...]] = {
    "05": ("PIO",),
    "12": ("A", "B"),
    "1C": ("0", "1"),
    "29": ("0", "1", "2", "3", "4", "5", "6", "7"),
    "3A": ("A", "B"),
}

#: What a thermometer shows that has power but did not convert.
POWER_ON_CELSIUS = 85.0

NAME = re.compile(r"([0-9A-F]{2})\.([0-9A-F]{12})")


@dataclass(frozen=True)
class Device:
    """One chip: the two parts of its name."""

    family: str
    serial: str

    def path(self, leaf: str) -> str:
        return f"/{self.family}.{self.serial}/{leaf}"


def device_of(text: str) -> Device | None:
    """The device that a listing's line or a name like 28.0123456789AB stands for, if any."""
    match = NAME.fullmatch(text.rpartition("/")[2])
    return Device(*match.groups()) if match else None


class Bus(Owserver):
    """All buses of one owserver. Every method raises OwGone, or OwError for what it names."""

    async def devices(self, families: Iterable[str]) -> list[Device]:
        """The devices of these families that are on the bus, each once, by name."""
        wanted = set(families)
        found = {device_of(line) for line in await self.dir("/")}
        here = [one for one in found if one is not None and one.family in wanted]
        return sorted(here, key=lambda one: (one.family, one.serial))

    async def convert(self) -> None:
        """Make all thermometers measure at once; reading one then waits only for what is left."""
        await self.write("/simultaneous/temperature", b"1")

    async def temperature(self, device: Device) -> float:
        """Degrees Celsius. A thermometer that shows its power-on value is asked once more."""
        celsius = float(await self.read(device.path("temperature")))
        if celsius == POWER_ON_CELSIUS:
            celsius = float(await self.read(device.path("temperature"), uncached=True))
        return celsius

    async def outputs(self, device: Device) -> dict[str, bool]:
        """What a switch's outputs are set to, by channel."""
        names = CHANNELS[device.family]
        leaf = "PIO" if len(names) == 1 else "PIO.ALL"
        bits = (await self.read(device.path(leaf), uncached=True)).split(b",")
        return {name: bit.strip() == b"1" for name, bit in zip(names, bits, strict=True)}

    async def switch(self, device: Device, channel: str, on: bool) -> None:
        """Set one output."""
        leaf = "PIO" if channel == "PIO" else f"PIO.{channel}"
        await self.write(device.path(leaf), b"1" if on else b"0")
