"""Device names and the text of values, as owserver writes and reads them; pure functions.

Used by `devices.py` and `tree.py`. Nothing here knows of a bus or keeps anything.

A device is a family byte, six bytes of serial number and a check byte. Its canonical name, by
which everything here calls it, is `FF.SSSSSSSSSSSS` in capital hex.
"""

from __future__ import annotations

import re

from moat_kv.testing.onewire.protocol import Code, OwFault

_NAME = re.compile(r"([0-9A-F]{2})\.?([0-9A-F]{12})(?:\.?([0-9A-F]{2}))?\Z")

#: What lies between the parts of a name, by the number in a request's flags:
#: family, serial; then, if names carry the check byte, serial, check.
_SEPARATORS: tuple[tuple[str, str | None], ...] = (
    (".", None),
    ("", None),
    (".", "."),
    (".", ""),
    ("", "."),
    ("", ""),
)


def crc8(data: bytes) -> int:
    """The check byte of the 1-wire bus (polynomial x^8 + x^5 + x^4 + 1, least bit first)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8C if crc & 1 else 0)
    return crc


def address(name: str) -> bytes:
    """The eight bytes of a canonical name, check byte last."""
    seven = bytes.fromhex(name.replace(".", ""))
    return seven + bytes([crc8(seven)])


def parse_name(text: str) -> str | None:
    """The canonical form of a name in any of the six formats; None if it is not one.

    A check byte that is given must be right.
    """
    match = _NAME.match(text.upper())
    if match is None:
        return None
    family, serial, check = match.groups()
    name = f"{family}.{serial}"
    if check is not None and int(check, 16) != address(name)[-1]:
        return None
    return name


def format_name(name: str, style: int) -> str:
    """A canonical name in format 0 to 5 (another number counts as 0)."""
    first, second = _SEPARATORS[style if style < len(_SEPARATORS) else 0]
    family, _, serial = name.partition(".")
    text = f"{family}{first}{serial}"
    return text if second is None else f"{text}{second}{address(name)[-1]:02X}"


def to_scale(celsius: float, scale: int) -> float:
    """A temperature in the scale of a request (0 Celsius, 1 Fahrenheit, 2 Kelvin, 3 Rankine)."""
    if scale == 1:
        return celsius * 1.8 + 32
    if scale == 2:
        return celsius + 273.15
    if scale == 3:
        return (celsius + 273.15) * 1.8
    return celsius


def from_scale(value: float, scale: int) -> float:
    """The inverse of `to_scale`."""
    if scale == 1:
        return (value - 32) / 1.8
    if scale == 2:
        return value - 273.15
    if scale == 3:
        return value / 1.8 - 273.15
    return value


def write_number(value: float) -> bytes:
    """A number the way owserver prints it: six digits, twelve places, to the right."""
    return f"{value:12.6g}".encode()


def read_number(data: bytes) -> float:
    """A number that a client wrote. Raises OwFault INVALID, or BAD_ADDRESS for nothing at all."""
    text = data.decode("ascii", "replace").strip()
    if not text:
        raise OwFault(Code.BAD_ADDRESS)
    try:
        return float(text)
    except ValueError:
        raise OwFault(Code.INVALID) from None


def read_switch(data: bytes) -> bool:
    """A yes or no that a client wrote: a number (not 0 is yes), or yes, no, on, off."""
    text = data.decode("ascii", "replace").strip().lower()
    if text in ("yes", "on"):
        return True
    if text in ("no", "off"):
        return False
    return read_number(data) != 0
