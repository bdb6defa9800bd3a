"""Values as JSON can carry them, and back: nothing is lost and nothing is guessed.

Used by `-o json` and `jsonl`, `dump`, `load` and `update`. What JSON lacks is a mapping with one
key that starts with `$`:

- `{"$bytes": base64}`, `{"$path": text}`, `{"$time": ISO 8601, UTC}`,
- `{"$time_ns": [seconds, nanoseconds]}` for a time that a datetime cannot hold,
- `{"$float": "nan" | "inf" | "-inf"}`, `{"$ext": [code, base64]}`,
- `{"$map": [[key, value], ...]}` for a mapping with keys that are no texts, or that looks like one
  of these.

Integers are digits, however many. Text that does not fit is refused with its place.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgpack

from moat_kv import errors
from moat_kv.path import P, Path


def to_plain(value: Any) -> Any:
    """The value with nothing in it but what JSON knows."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, dict):
        return _plain_mapping(value)
    if isinstance(value, msgpack.ExtType):  # a tuple, so before sequences
        return {"$ext": [value.code, _base64(value.data)]}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"$bytes": _base64(value)}
    if isinstance(value, Path):
        return {"$path": str(value)}
    if isinstance(value, datetime):
        return {"$time": value.astimezone(UTC).isoformat()}
    if isinstance(value, msgpack.Timestamp):
        time: Any = value  # its stubs do not know its attributes
        return {"$time_ns": [time.seconds, time.nanoseconds]}
    raise errors.BadValue(f"{type(value).__name__} cannot be printed")


def _plain_mapping(value: dict[Any, Any]) -> Any:
    simple = all(isinstance(key, str) for key in value)
    if simple and not (len(value) == 1 and next(iter(value)).startswith("$")):
        return {key: to_plain(item) for key, item in value.items()}
    return {"$map": [[to_plain(key), to_plain(item)] for key, item in value.items()]}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def from_plain(value: Any) -> Any:
    """The value that `to_plain` was given. Raises BadValue for a `$` key that means nothing."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, inner),) = value.items()
        if key.startswith("$"):
            return _special(key, inner)
    return {key: from_plain(item) for key, item in value.items()}


def _special(key: str, inner: Any) -> Any:
    read = _READERS.get(key)
    if read is None:
        raise errors.BadValue(f"{key} means nothing here; known: {', '.join(sorted(_READERS))}")
    try:
        return read(inner)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as exc:
        if isinstance(exc, errors.BadValue):
            raise
        raise errors.BadValue(f"{key}: {exc}") from exc


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _time(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError("a time zone is missing")
    return when


def _float(text: str) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text]


def _ext(parts: list[Any]) -> msgpack.ExtType:
    code, data = parts
    if type(code) is not int or not -128 <= code <= 127:
        raise ValueError("a code is an integer from -128 to 127")
    # Its own constructor refuses the negative codes, which a value may nevertheless hold.
    return tuple.__new__(msgpack.ExtType, (code, _bytes(data)))


def _map(pairs: list[Any]) -> dict[Any, Any]:
    return {from_plain(key): from_plain(item) for key, item in pairs}


_READERS: dict[str, Callable[[Any], Any]] = {
    "$bytes": _bytes,
    "$path": P,
    "$time": _time,
    "$time_ns": lambda parts: msgpack.Timestamp(*parts),
    "$float": _float,
    "$ext": _ext,
    "$map": _map,
}


def to_json(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON: strict JSON, so that any reader takes it."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        to_plain(value), ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
    )
    return text.translate(_C1)  # which JSON leaves as they are, and terminals obey


_C1 = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def from_json(text: str) -> Any:
    """The value of a JSON text. Raises BadValue with the place."""
    try:
        return from_plain(json.loads(text, parse_constant=_no_constant))
    except json.JSONDecodeError as exc:
        raise errors.BadValue(f"not JSON: {exc.msg} (column {exc.colno})") from exc
    except RecursionError as exc:
        raise errors.BadValue("nested too deep") from exc


def _no_constant(name: str) -> Any:
    raise errors.BadValue(f'{name} is not JSON; write {{"$float": "{name.lower()}"}}')


def inline(value: Any) -> str:
    """The value in one line for people: a text as it is if that can be, all else as in JSON."""
    if isinstance(value, str):
        return value if value.isprintable() else _quoted(value)
    if isinstance(value, float | bytes):
        return repr(value)
    if isinstance(value, Path):
        text = str(value)
        return text if text.isprintable() else _quoted(text)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return _quoted(to_plain(value))


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]
