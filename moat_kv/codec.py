"""Values and their msgpack, both ways.

Servers, clients and engines keep values packed (`Packed`) and pass them on as they are; whoever
needs to look inside unpacks here. `check` is the server's door: what passes it can be unpacked by
everybody. Nothing here knows of frames, paths in the tree, or connections.

Extension types: timestamps (-1) are aware datetimes in UTC, or `msgpack.Timestamp` where a datetime
cannot hold them (its years end at 9999, its fractions at microseconds); 2 is an integer outside 64
bits, a sign byte (0 or 1) and the big-endian magnitude; 3 is a path, its packed form. Every other
type is kept as `msgpack.ExtType`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import msgpack

from moat_kv.errors import BadPath, BadValue
from moat_kv.path import Path, unpack_cached

if msgpack.Packer.__module__ == "msgpack.fallback":
    raise ImportError(
        "msgpack runs on its pure-Python fallback, which is far too slow for moat-kv: "
        "install a msgpack with its C extension, and unset MSGPACK_PUREPYTHON"
    )

#: One value as msgpack; what `pack` returns and `unpack` takes.
Packed: TypeAlias = bytes

#: How deep values may nest: `[]` is 1 deep, a number 0.
MAX_DEPTH: Final = 64

EXT_BIG_INT: Final = 2
EXT_PATH: Final = 3

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_first = itemgetter(0)

_Number = TypeVar("_Number", int, float)


class AttrDict(dict[Any, Any]):
    """A dict whose keys can also be read, set and deleted as attributes.

    A key that is also a method's name (`items`, `keys`) is reached by `[]` alone.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None

    def copy(self) -> AttrDict:
        return AttrDict(self)


# Packing ----------------------------------------------------------------------------------------


def pack(value: Any) -> Packed:
    """The msgpack of a value.

    Raises BadValue for what cannot be carried (another type, a naive datetime, a lone surrogate,
    more than 64 containers inside each other), with the reason and the place inside the value.
    """
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=_pack_other, autoreset=True)
    try:
        packed: bytes = packer.pack(value)
    except (BadValue, TypeError, ValueError, OverflowError) as error:
        _explain(value, (), 0)
        raise BadValue(str(error)) from error
    if len(packed) <= _KEPT_BUFFER:
        _packers.append(packer)
    if len(packed) > MAX_DEPTH and _may_be_deep(packed, MAX_DEPTH):
        try:
            _refuse_deep(packed, MAX_DEPTH)
        except BadValue:
            _explain(value, (), 0)
            raise
    return packed


#: Packers that nobody uses just now. A packer must not be entered twice, and packing can run other
#: Python code (a subclass's iterator, a thread switch): each call takes one out for itself.
_packers: list[msgpack.Packer] = []
#: A packer's buffer never shrinks; one that has packed more than so many bytes is let go.
_KEPT_BUFFER: Final = 1 << 20


def _pack_other(value: Any) -> Any:
    """What msgpack does not know by itself, in a form that it knows."""
    if isinstance(value, Path):
        return msgpack.ExtType(EXT_PATH, value.packed)
    if isinstance(value, int):
        magnitude = abs(value)
        size = (magnitude.bit_length() + 7) // 8
        sign = b"\x01" if value < 0 else b"\x00"
        return msgpack.ExtType(EXT_BIG_INT, sign + magnitude.to_bytes(size, "big"))
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise BadValue("a naive datetime names no point in time; give it a time zone")
        since = value - _EPOCH
        whole_s = since.days * 86400 + since.seconds
        return msgpack.Timestamp(whole_s, since.microseconds * 1000)
    raise BadValue(f"{type(value).__name__} cannot be carried")


def _explain(value: Any, where: tuple[Any, ...], depth: int) -> None:
    """Find the place inside a value that cannot be packed, and raise BadValue for it."""
    if isinstance(value, dict | list | tuple) and not isinstance(value, msgpack.ExtType):
        if depth >= MAX_DEPTH:
            _refuse(f"deeper than {MAX_DEPTH} containers", where)
        items: Iterable[Any] = enumerate(value)
        if isinstance(value, dict):
            for key in value:
                _explain(key, where, depth + 1)
            items = value.items()
        for key, item in items:
            _explain(item, (*where, key), depth + 1)
        return
    try:
        msgpack.packb(value, default=_pack_other)
    except BadValue as error:
        _refuse(error.reason, where)
    except UnicodeEncodeError:
        _refuse("a lone surrogate is no character", where)
    except (TypeError, ValueError, OverflowError) as error:
        _refuse(f"{type(value).__name__} cannot be carried: {error}", where)


def _refuse(reason: str, where: tuple[Any, ...]) -> NoReturn:
    try:
        place = str(Path(*where)) if where else ""
    except BadPath:  # a key that is no path element, or too far inside
        place = " ".join(f"[{key!r}]" for key in where[-3:])
    raise BadValue(reason, place) from None


# Unpacking --------------------------------------------------------------------------------------


def unpack(data: Packed) -> Any:
    """The value of one msgpack object; mappings are `AttrDict`, arrays lists.

    Raises BadValue for anything but exactly one well-formed object, at most 64 deep.
    """
    if len(data) > MAX_DEPTH and _may_be_deep(data, MAX_DEPTH):
        _refuse_deep(data, MAX_DEPTH)
    try:
        value = msgpack.unpackb(
            data, strict_map_key=False, object_hook=AttrDict, ext_hook=_unpack_ext
        )
    except BadValue:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise _unpack_error(error) from error
    return _with_datetimes(value) if b"\xff" in data and _TIMESTAMP.search(data) else value


def check(data: Packed, max_depth: int = MAX_DEPTH) -> None:
    """Raise BadValue unless `unpack` can read this, at most `max_depth` (0 to 1000) deep.

    As cheap as unpacking without our own types; exact about the depth only where a count of what
    looks like containers says that it could be too deep. Above 16 KiB the keys of mappings are
    looked at before they come into a dictionary: see `_Keys`.
    """
    if len(data) > max_depth and _may_be_deep(data, max_depth):
        _refuse_deep(data, max_depth)
    hook = _Keys().count if len(data) > _CROWD_BYTES else None
    try:
        msgpack.unpackb(data, strict_map_key=False, ext_hook=_unpack_ext, object_pairs_hook=hook)
    except BadValue:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise _unpack_error(error) from error


#: Shorter values cannot hold so many keys of one hash that it matters.
_CROWD_BYTES: Final = 16 * 1024
#: How many numbers one mapping may have as keys, and how many keys of other kinds (but texts and
#: byte strings) one value.
MAX_NUMBER_KEYS: Final = 10_000
MAX_OTHER_KEYS: Final = 1_000
_FREE_KEYS: Final = (str, bytes)


class _Keys:
    """Counts the keys of a value's mappings.

    Python's hashes of integers and timestamps hold no secret: whoever writes them can have all
    collide, and then a mapping of 60,000, which fits a frame, takes a minute to build, in every
    process that reads the value.
    """

    def __init__(self) -> None:
        self._others = 0

    def count(self, pairs: list[tuple[Any, Any]]) -> list[Any]:
        """Raise BadValue for what is no key, or one too many; stands for the mapping."""
        for key, _ in pairs:
            if type(key) is not str:
                break
        else:
            return []
        kinds = Counter(map(type, map(_first, pairs)))
        if list in kinds:  # mappings are lists here, too
            raise BadValue("a mapping's key is an array or a mapping")
        numbers = kinds[int] + kinds[float]
        self._others += len(pairs) - numbers - sum([kinds[kind] for kind in _FREE_KEYS])
        if kinds[int]:
            big = sum([type(key) is int and not -(2**63) <= key < 2**64 for key, _ in pairs])
            numbers -= big
            self._others += big
        if numbers > MAX_NUMBER_KEYS:
            raise BadValue(f"a mapping with more than {MAX_NUMBER_KEYS} numbers as keys")
        if self._others > MAX_OTHER_KEYS:
            raise BadValue(
                f"more than {MAX_OTHER_KEYS} keys that are no texts, byte strings or numbers"
            )
        return []


def _unpack_ext(code: int, data: bytes) -> Any:
    if code == EXT_PATH:
        return unpack_cached(data)
    if code == EXT_BIG_INT:
        if data[:1] not in (b"\x00", b"\x01"):
            raise BadValue("a big integer starts with a sign byte, 0 or 1")
        magnitude = int.from_bytes(data[1:], "big")
        return -magnitude if data[0] else magnitude
    # ExtType's own constructor refuses the negative codes, which msgpack keeps for itself.
    return tuple.__new__(msgpack.ExtType, (code, data))


def _unpack_error(error: Exception) -> BadValue:
    """What went wrong, in our words."""
    if isinstance(error, BadPath):
        return BadValue(f"a path inside: {error}")
    if isinstance(error, msgpack.ExtraData):
        return BadValue("more bytes after the value")
    if isinstance(error, UnicodeDecodeError):
        return BadValue("a text that is not UTF-8")
    if isinstance(error, msgpack.StackError):
        return BadValue("far too deep")
    if isinstance(error, TypeError):
        return BadValue("a mapping's key is an array or a mapping")
    if "incomplete" in str(error):
        return BadValue("cut short")
    return BadValue(f"not msgpack: {error}" if str(error) else "not msgpack")


#: Where a timestamp may start: the heads of an extension whose type is -1.
_TIMESTAMP = re.compile(rb"[\xd4-\xd8]\xff|\xc7.\xff|\xc8..\xff|\xc9....\xff", re.DOTALL)


def _with_datetimes(value: Any) -> Any:
    """The value with each timestamp that a datetime can hold exactly as a datetime.

    msgpack's own switch for this drops nanoseconds, and fails beyond the year 9999.
    """
    if type(value) is list:
        return [_with_datetimes(item) for item in value]
    if type(value) is AttrDict:
        pairs = [(_with_datetimes(key), _with_datetimes(item)) for key, item in value.items()]
        return AttrDict(pairs)
    if type(value) is msgpack.Timestamp:
        microseconds, rest = divmod(value.to_unix_nano(), 1000)
        if not rest:
            try:
                return _EPOCH + timedelta(microseconds=microseconds)
            except OverflowError:
                return value
    return value


# Depth ------------------------------------------------------------------------------------------

_CONTAINER_HEADS = frozenset([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_OTHER_BYTES = bytes(set(range(256)) - _CONTAINER_HEADS)


def _may_be_deep(data: bytes, max_depth: int) -> bool:
    """Whether there are more bytes that could start a container than containers may nest."""
    return len(data.translate(None, _OTHER_BYTES)) > max_depth


def _deepest() -> int:
    """How many containers msgpack's own stack holds; a constant of its build."""
    low, high = 0, 1 << 16
    while high - low > 1:
        middle = (low + high) // 2
        try:
            msgpack.unpackb(b"\x91" * middle + b"\xc0")
            low = middle
        except msgpack.StackError:
            high = middle
    return low


_STACK: Final = _deepest()


def _refuse_deep(data: bytes, max_depth: int) -> None:
    """Raise BadValue if the data is deeper; anything else that is wrong with it is left alone.

    msgpack has a fixed stack and no setting for it. Inside as many arrays as leave `max_depth` of
    it free, whatever is deeper overflows, at the speed of its C code and without building a value.
    """
    wrapped = b"\x91" * (_STACK - max_depth) + data
    skipper = msgpack.Unpacker(max_buffer_size=len(wrapped), strict_map_key=False)
    skipper.feed(wrapped)
    try:
        skipper.skip()
    except msgpack.StackError:
        raise BadValue(f"deeper than {max_depth} containers") from None
    except (ValueError, msgpack.OutOfData):
        return


# Numbers ----------------------------------------------------------------------------------------


def digits(n: _Number, digits: int = 6) -> _Number:
    """The number rounded to so many significant digits (1 or more); 0 gives 0.

    Infinities and NaN come back as they are.
    """
    if digits < 1:
        raise ValueError("at least one significant digit")
    if n in (0, math.inf, -math.inf) or n != n:
        return n
    return round(n, digits - 1 - math.floor(math.log10(abs(n))))
