"""What hangs on the simulated bus: sensors, switches and a battery monitor, without any I/O.

Made by `model.py`, read and written by `tree.py`. A device keeps what is written to it; what only
the world changes (a temperature, the level at a switch's pin) is set by the methods that are not
properties. A device neither knows whether it is plugged in nor which faults it has.

The properties, their types and their order are those that owserver 3.2 shows below /structure;
a few that no client needs (scratchpads, LCD registers, calendar) are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from moat_kv.testing.onewire import names
from moat_kv.testing.onewire.protocol import Code, OwFault

#: What devices can do, as a listing's last number says it.
RESUME, ALARM, OVERDRIVE, VOLTAGE, TEMPERATURE = 0x0001, 0x0002, 0x0004, 0x4000, 0x8000

_LENGTH = {"t": 12, "f": 12, "u": 12, "y": 1, "l": 256}

#: A sensor that has power but has not converted yet shows this.
POWER_ON_CELSIUS = 85.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Property:
    """One property of a family: `kind` is owserver's type letter, `change` its change letter.

    `count` above 1 makes it an array of bits, addressed `NAME.A` or `NAME.0`, `NAME.ALL` and
    `NAME.BYTE`.
    """

    kind: str
    mode: str = "ro"
    change: str = "v"
    length: int = 0
    count: int = 1
    letters: bool = False

    @property
    def size(self) -> int:
        return self.length or _LENGTH[self.kind]

    def element(self, index: int) -> str:
        return chr(ord("A") + index) if self.letters else str(index)

    def suffixes(self) -> list[str]:
        """The endings under which the property is listed, with their dots."""
        if self.count == 1:
            return [""]
        return [".BYTE", ".ALL", *(f".{self.element(i)}" for i in range(self.count))]


def _text(length: int) -> Property:
    return Property(kind="a", change="f", length=length)


COMMON: dict[str, Property] = {
    "address": _text(16),
    "alias": Property(kind="l", mode="rw", change="f"),
    "crc8": _text(2),
    "family": _text(2),
    "id": _text(12),
    "locator": _text(16),
    "r_address": _text(16),
    "r_id": _text(12),
    "r_locator": _text(16),
    "type": _text(32),
}


def _with_common(own: Mapping[str, Property]) -> Mapping[str, Property]:
    """A family's properties in the order in which owserver lists them."""
    return dict(sorted((COMMON | dict(own)).items()))


_TEMPERATURE = Property(kind="t")
_LIMIT = Property(kind="t", mode="rw", change="s")


class Device:
    """The part that all families share."""

    family: ClassVar[str]
    chip: ClassVar[str]
    abilities: ClassVar[int] = 0
    properties: ClassVar[Mapping[str, Property]] = COMMON

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self.alias = ""

    def get(self, name: str) -> Any:
        """The value of a property: float, int, bool, str, or a list of bool for an array."""
        raw = names.address(self.name).hex().upper()
        back = bytes.fromhex(raw)[::-1].hex().upper()
        fixed = {
            "address": raw,
            "alias": self.alias,
            "crc8": raw[14:],
            "family": self.family,
            "id": raw[2:14],
            "locator": "F" * 16,
            "r_address": back,
            "r_id": back[2:14],
            "r_locator": "F" * 16,
            "type": self.chip,
        }
        return fixed[name]

    def put(self, name: str, value: Any) -> None:
        """Keep a value that a client wrote to a property that may be written."""
        if name != "alias":
            raise OwFault(Code.NOT_SUPPORTED)
        self.alias = value

    def power_cycle(self) -> None:
        """Lose what a chip forgets without power."""

    @property
    def alarming(self) -> bool:
        """Whether the device answers a search for those with an alarm."""
        return False


class TemperatureSensor(Device):
    """A sensor whose surroundings have a temperature that may drift."""

    family = "10"
    chip = "DS18S20"
    abilities = TEMPERATURE | ALARM
    properties = _with_common(
        {
            "latesttemp": _TEMPERATURE,
            "power": Property(kind="y"),
            "temperature": _TEMPERATURE,
            "temphigh": _LIMIT,
            "templow": _LIMIT,
        }
    )

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, clock)
        self._base = 20.0
        self._drift_per_s = 0.0
        self._since = clock()
        self.latest = POWER_ON_CELSIUS
        self.high = 75.0
        self.low = -40.0

    @property
    def celsius(self) -> float:
        """The true temperature around the sensor, now."""
        return self._base + self._drift_per_s * (self._clock() - self._since)

    def set_temperature(self, celsius: float) -> None:
        self._base = celsius
        self._since = self._clock()

    def set_drift(self, celsius_per_s: float) -> None:
        """From now on the temperature changes by this much each second (0: it stays)."""
        self.set_temperature(self.celsius)
        self._drift_per_s = celsius_per_s

    def convert(self, step: float = 0.0625) -> float:
        """Measure: the value in steps of the chip's resolution, within -55 to 125 degrees."""
        self.latest = min(125.0, max(-55.0, round(self.celsius / step) * step))
        return self.latest

    def get(self, name: str) -> Any:
        match name:
            case "temperature":
                return self.convert()
            case "latesttemp":
                return self.latest
            case "temphigh":
                return self.high
            case "templow":
                return self.low
            case "power":
                return True
        return super().get(name)

    def put(self, name: str, value: Any) -> None:
        match name:
            case "temphigh":
                self.high = float(value)
            case "templow":
                self.low = float(value)
            case _:
                super().put(name, value)

    def power_cycle(self) -> None:
        self.latest = POWER_ON_CELSIUS

    @property
    def alarming(self) -> bool:
        """Whether the last conversion lies outside the limits; never before the first one."""
        if self.latest == POWER_ON_CELSIUS:
            return False
        return not self.low < self.latest < self.high


class FineSensor(TemperatureSensor):
    """The family with a choice of resolutions."""

    family = "28"
    chip = "DS18B20"
    properties = _with_common(
        {
            **TemperatureSensor.properties,
            "fasttemp": _TEMPERATURE,
            "temperature10": _TEMPERATURE,
            "temperature11": _TEMPERATURE,
            "temperature12": _TEMPERATURE,
            "temperature9": _TEMPERATURE,
            "tempres": Property(kind="u", mode="rw", change="s"),
        }
    )
    _STEP: ClassVar[dict[str, float]] = {
        "fasttemp": 0.5,
        "temperature9": 0.5,
        "temperature10": 0.25,
        "temperature11": 0.125,
        "temperature12": 0.0625,
    }

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, clock)
        self.bits = 12

    def get(self, name: str) -> Any:
        if name in self._STEP:
            return self.convert(self._STEP[name])
        if name == "temperature":
            return self.convert(self._STEP[f"temperature{self.bits}"])
        return self.bits if name == "tempres" else super().get(name)

    def put(self, name: str, value: Any) -> None:
        if name != "tempres":
            super().put(name, value)
        elif 9 <= value <= 12:
            self.bits = int(value)
        else:
            raise OwFault(Code.INVALID)


class Switch(Device):
    """A chip with open-drain outputs whose pins can be read back.

    `outputs[i]` is what was last written to a channel (True: it pulls its pin low); `inputs[i]`
    is the level that the world gives the pin; what is sensed is high only if neither pulls low.
    """

    channels: ClassVar[int] = 1

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, clock)
        self.outputs = [False] * self.channels
        self.inputs = [True] * self.channels
        self.latched = [False] * self.channels

    @property
    def sensed(self) -> list[bool]:
        return [high and not on for high, on in zip(self.inputs, self.outputs, strict=True)]

    def set_output(self, channel: int, on: bool) -> None:
        self._change(self.outputs, channel, on)

    def set_input(self, channel: int, high: bool) -> None:
        self._change(self.inputs, channel, high)

    def _change(self, which: list[bool], channel: int, value: bool) -> None:
        if not 0 <= channel < self.channels:
            raise ValueError(f"{self.name} has channels 0 to {self.channels - 1}, not {channel}")
        before = self.sensed
        which[channel] = value
        for i, (old, new) in enumerate(zip(before, self.sensed, strict=True)):
            self.latched[i] |= old != new

    def get(self, name: str) -> Any:
        match name:
            case "PIO":
                return list(self.outputs) if self.channels > 1 else self.outputs[0]
            case "sensed":
                return self.sensed if self.channels > 1 else self.sensed[0]
            case "latch":
                return list(self.latched)
            case "power":
                return True
        return super().get(name)

    def put(self, name: str, value: Any) -> None:
        if name == "PIO":
            for channel, on in enumerate(value if isinstance(value, list) else [value]):
                self.set_output(channel, on)
        elif name == "latch":  # whatever is written, the chip clears them all
            self.latched = [False] * self.channels
        else:
            super().put(name, value)

    def power_cycle(self) -> None:
        self.outputs = [False] * self.channels
        self.latched = [False] * self.channels


def _switch_properties(count: int, letters: bool, change: str) -> dict[str, Property]:
    return {
        "PIO": Property(kind="y", mode="rw", change=change, count=count, letters=letters),
        "sensed": Property(kind="y", count=count, letters=letters),
    }


class SingleSwitch(Switch):
    family = "05"
    chip = "DS2405"
    abilities = ALARM
    properties = _with_common(_switch_properties(1, False, "s"))


class DualSwitch(Switch):
    family = "3A"
    chip = "DS2413"
    abilities = RESUME | OVERDRIVE
    channels = 2
    properties = _with_common(_switch_properties(2, True, "v"))


class OctalSwitch(Switch):
    family = "29"
    chip = "DS2408"
    abilities = RESUME | ALARM | OVERDRIVE
    channels = 8
    properties = _with_common(
        {
            **_switch_properties(8, False, "s"),
            "latch": Property(kind="y", mode="rw", count=8),
            "power": Property(kind="y"),
        }
    )


class BatteryMonitor(Device):
    """Voltages, humidity and a temperature; `set` gives them their values."""

    family = "26"
    chip = "DS2438"
    abilities = TEMPERATURE | VOLTAGE
    properties = _with_common(
        {
            "HIH4000/humidity": Property(kind="f"),
            "VAD": Property(kind="f"),
            "VDD": Property(kind="f"),
            "humidity": Property(kind="f"),
            "latesttemp": _TEMPERATURE,
            "temperature": _TEMPERATURE,
            "vis": Property(kind="f"),
        }
    )

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name, clock)
        self.measured = {"VAD": 2.5, "VDD": 5.0, "humidity": 50.0, "temperature": 20.0, "vis": 0.0}

    def get(self, name: str) -> Any:
        plain = {"HIH4000/humidity": "humidity", "latesttemp": "temperature"}.get(name, name)
        return self.measured[plain] if plain in self.measured else super().get(name)

    def set(self, name: str, value: float) -> None:
        """What the device measures from now on: VAD, VDD, humidity, temperature or vis."""
        if name not in self.measured:
            raise ValueError(f"{self.name} measures {', '.join(self.measured)}, not {name}")
        self.measured[name] = value


FAMILIES: dict[str, type[Device]] = {
    cls.family: cls
    for cls in (
        SingleSwitch,
        TemperatureSensor,
        BatteryMonitor,
        FineSensor,
        OctalSwitch,
        DualSwitch,
    )
}
