"""Paths: the immutable addresses of entries, and their packed form.

Everything else takes paths from here. A path's elements are str, int, float, bool, None, bytes, or
tuples of these; its keys are what a dictionary tells apart as a path does (True, 1 and 1.0 are
three elements, though Python's dictionaries see one). Checks happen once, when a path is made; what
a path holds is then trusted. The text form is read and written by `moat_kv.path_text`. Nothing here
does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, final, overload

import msgpack

from moat_kv import path_text
from moat_kv.errors import BadPath
from moat_kv.path_element import (
    MAX_BYTES,
    Element,
    ElementLike,
    Key,
    PackedKey,
    clean,
    described,
    element_key,
    keys_of,
    order_of,
    pack_elements,
)

__all__ = [
    "MAX_BYTES",
    "MAX_ELEMENTS",
    "Element",
    "ElementLike",
    "Key",
    "P",
    "PackedKey",
    "Path",
    "element_key",
    "key_element",
    "unpack_cached",
]

#: How many elements a path has at most.
MAX_ELEMENTS: Final = 64
#: What `unpack_cached` keeps: so many paths, and so many bytes of them in packed form.
_CACHED_PATHS: Final = 16384
_CACHED_BYTES: Final = 4 << 20


@final
class Path:
    """An immutable sequence of elements.

    `Path("a", 1)` takes the elements, `Path.build(sequence)` a sequence of them, `P(text)` the text
    form. Raises BadPath for what cannot be an element (a lone surrogate, NaN, an integer outside
    -2**63..2**64-1, another type), and for more than 64 elements or 1,024 packed bytes. Strings are
    NFC-normalised, -0.0 becomes 0.0, lists become tuples.

    `elements` are the elements, `keys` one dictionary key for each (see `element_key`); equality
    and hash go by the keys. If all elements are str, `keys` is the very same tuple.
    """

    __slots__ = ("_hash", "_packed", "_size_bound", "elements", "keys")

    elements: tuple[Element, ...]
    keys: tuple[Key, ...]
    #: At least as many bytes as the packed form has.
    _size_bound: int
    # When it is first asked for; None until then, because a missing attribute costs an exception.
    _packed: bytes | None
    # When it is first asked for; missing until then.
    _hash: int

    def __init__(self, *elements: ElementLike) -> None:
        for element in elements:
            if type(element) is not str:
                break
        else:
            text = "".join(elements)  # type: ignore[arg-type]  # all are str
            # A str's header takes up to three bytes at these lengths; ASCII is always normalised.
            bound = len(text) + 3 * len(elements)
            if bound <= MAX_BYTES and len(elements) <= MAX_ELEMENTS and text.isascii():
                _set_elements(self, elements)
                _set_keys(self, elements)
                _set_size_bound(self, bound)
                _set_packed(self, None)
                return
        self._init_checked(elements)

    def _init_checked(self, elements: tuple[Any, ...]) -> None:
        """The slow way of making a path, for anything but short ASCII names."""
        if len(elements) > MAX_ELEMENTS:
            raise BadPath(
                f"<{len(elements)} elements>", f"a path has at most {MAX_ELEMENTS} elements"
            )
        cleaned = tuple([clean(element) for element in elements])
        packed = pack_elements(cleaned)
        if len(packed) > MAX_BYTES:
            raise BadPath(
                path_text.shown(path_text.render(cleaned)),
                f"a path has at most {MAX_BYTES} packed bytes, this one has {len(packed)}",
            )
        _set_elements(self, cleaned)
        _set_keys(self, keys_of(cleaned))
        _set_size_bound(self, len(packed))
        _set_packed(self, packed)

    @staticmethod
    def build(elements: Iterable[ElementLike]) -> Path:
        """The path with these elements; a text is refused, since `P` is what reads texts."""
        if isinstance(elements, str | bytes):
            raise BadPath(described(elements), "a sequence of elements is needed; P() reads texts")
        return Path(*elements)

    @staticmethod
    def _trusted(elements: tuple[Any, ...], keys: tuple[Any, ...], size_bound: int) -> Path:
        """A path of elements that come from other paths, within the limits.

        `keys` must be `elements` itself where all are str.
        """
        path = _new(Path)
        _set_elements(path, elements)
        _set_keys(path, keys)
        _set_size_bound(path, size_bound)
        _set_packed(path, None)
        return path

    @staticmethod
    def unpack(data: bytes) -> Path:
        """The path whose packed form this is.

        Raises BadPath for anything that `packed` would not have written.
        """
        return _unpack(data)

    @property
    def packed(self) -> bytes:
        """The msgpack of each element, one after the other; at most 1,024 bytes."""
        packed = self._packed
        if packed is None:
            packed = pack_elements(self.elements)
            _set_packed(self, packed)
        return packed

    # What a sequence can do

    def __len__(self) -> int:
        return len(self.elements)

    def __iter__(self) -> Iterator[Element]:
        return iter(self.elements)

    def __contains__(self, element: object) -> bool:
        try:
            return element_key(element) in self.keys
        except BadPath:
            return False

    @overload
    def __getitem__(self, index: int) -> Element: ...
    @overload
    def __getitem__(self, index: slice) -> Path: ...
    def __getitem__(self, index: int | slice) -> Element | Path:
        if type(index) is not slice:
            return self.elements[index]
        part = self.elements[index]
        keys = part if self.keys is self.elements else keys_of(part)
        return Path._trusted(part, keys, self._size_bound)

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = hash(self.keys)
            _set_hash(self, value)
            return value

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not Path:
            return NotImplemented
        return self.keys == other.keys

    # Order, for listings: element by element, by type and then by value

    def __lt__(self, other: Path) -> bool:
        if type(other) is not Path:
            return NotImplemented
        return _order(self, other) < _order(other, self)

    def __le__(self, other: Path) -> bool:
        if type(other) is not Path:
            return NotImplemented
        return _order(self, other) <= _order(other, self)

    def __gt__(self, other: Path) -> bool:
        if type(other) is not Path:
            return NotImplemented
        return _order(self, other) > _order(other, self)

    def __ge__(self, other: Path) -> bool:
        if type(other) is not Path:
            return NotImplemented
        return _order(self, other) >= _order(other, self)

    # Making paths from paths

    def __add__(self, other: Path | tuple[ElementLike, ...] | list[Any]) -> Path:
        if type(other) is not Path:
            if not isinstance(other, tuple | list):
                return NotImplemented
            other = Path(*other)
        if not other.elements:
            return self
        if not self.elements:
            return other
        elements = self.elements + other.elements
        bound = self._size_bound + other._size_bound
        if bound > MAX_BYTES or len(elements) > MAX_ELEMENTS:
            return Path(*elements)
        if self.keys is self.elements and other.keys is other.elements:
            return Path._trusted(elements, elements, bound)
        return Path._trusted(elements, self.keys + other.keys, bound)

    __or__ = __add__

    def __truediv__(self, element: ElementLike) -> Path:
        if isinstance(element, Path):
            raise BadPath(path_text.shown(str(element)), "paths are joined with +")
        return self + Path(element)

    def __mod__(self, count: int) -> Path:
        if type(count) is not int:
            return NotImplemented
        if not 0 <= count <= len(self.elements):
            raise BadPath(
                path_text.shown(str(self)),
                f"cannot drop {described(count)} of {len(self.elements)} elements",
            )
        return self[: len(self.elements) - count] if count else self

    def startswith(self, other: Path) -> bool:
        """Whether the first elements are those of `other`; every path starts with the empty one."""
        keys = other.keys
        return self.keys[: len(keys)] == keys

    # What a value is

    def __str__(self) -> str:
        return path_text.render(self.elements)

    def __repr__(self) -> str:
        return f"P({str(self)!r})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a path is immutable: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a path is immutable: cannot delete {name}")

    def __copy__(self) -> Path:
        return self

    def __deepcopy__(self, memo: object) -> Path:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpack, (self.packed,))


def _order(path: Path, other: Path) -> tuple[Any, ...]:
    """What `path` sorts by beside `other`; a tree of plain names needs nothing but these."""
    if path.keys is path.elements and other.keys is other.elements:
        return path.elements
    return order_of(path.elements)


_new = object.__new__
# The slots' own setters go past `Path.__setattr__`.
_set_elements: Callable[[Path, tuple[Any, ...]], None] = Path.__dict__["elements"].__set__
_set_keys: Callable[[Path, tuple[Any, ...]], None] = Path.__dict__["keys"].__set__
_set_size_bound: Callable[[Path, int], None] = Path.__dict__["_size_bound"].__set__
_set_packed: Callable[[Path, bytes | None], None] = Path.__dict__["_packed"].__set__
_set_hash: Callable[[Path, int], None] = Path.__dict__["_hash"].__set__


def P(text: str) -> Path:
    """The path that a text means; `P(str(path)) == path` for every path.

    Raises BadPath for a text that means none, TypeError for what is not a text.
    """
    if not isinstance(text, str):
        raise TypeError(f"a path's text is a str, not {type(text).__name__}")
    return _parsed(text)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Path:
    elements = path_text.parse(text)
    try:
        return Path(*elements)
    except BadPath as error:
        raise BadPath(path_text.shown(text), f"{error.text}: {error.reason}") from None


def key_element(key: Key) -> Element:
    """The element whose key this is, as `Path.keys` or `element_key` gave it."""
    return _unpack(key).elements[0] if type(key) is PackedKey else key


# Packing ----------------------------------------------------------------------------------------


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code} cannot be in a path")


#: The heads of strings of up to 31 bytes, and of arrays of up to 15 elements.
_SHORT_STRINGS: Final = bytes(range(0xA0, 0xC0))
_SHORT_ARRAYS: Final = [bytes([head]) for head in range(0x90, 0xA0)]


def _unpack(data: bytes) -> Path:
    if len(data) > MAX_BYTES:
        raise BadPath(described(data), f"a packed path has at most {MAX_BYTES} bytes")
    data = bytes(data)
    path = _unpack_names(data)
    if path is None:
        path = Path(*_unpack_elements(data))
        # Whatever could have been written in another way (a longer header, a string that is not
        # normalised) would make two packed forms of one path.
        if path.packed != data:
            raise BadPath(described(data), "not the canonical packed form")
        _set_packed(path, data)
    return path


def _unpack_names(data: bytes) -> Path | None:
    """The quick way for at most 15 short ASCII names; None if it is not that.

    Then there are as many names as bytes that look like the head of a short string, and msgpack
    can read them as one array (0.9 µs for three names; a loop over them in Python takes 2).
    """
    count = len(data) - len(data.translate(None, _SHORT_STRINGS))
    try:
        names = tuple(msgpack.unpackb(_SHORT_ARRAYS[count] + data))
        text = "".join(names)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # With longer heads, or other than ASCII characters, there were more bytes than this.
    if len(text) + count != len(data) or not text.isascii():
        return None
    path = _new(Path)
    _set_elements(path, names)
    _set_keys(path, names)
    _set_size_bound(path, len(data))
    _set_packed(path, data)
    # What comes from outside is nearly always looked up.
    _set_hash(path, hash(names))
    return path


def _unpack_elements(data: bytes) -> list[Any]:
    unpacker = msgpack.Unpacker(
        use_list=False, ext_hook=_refuse_extension, max_buffer_size=MAX_BYTES, timestamp=0
    )
    unpacker.feed(data)
    elements: list[Any] = []
    try:
        while unpacker.tell() < len(data):
            elements.append(unpacker.unpack())
    except msgpack.OutOfData:
        raise BadPath(described(data), "the packed path is cut short") from None
    except (ValueError, TypeError) as error:
        raise BadPath(described(data), f"not a packed path: {error}") from None
    return elements


class _Unpacked(dict[bytes, Path]):
    """Packed paths and their paths, up to a bound on their number and size; then it starts anew."""

    def __init__(self) -> None:
        super().__init__()
        self._size_bytes = 0

    def __missing__(self, data: bytes) -> Path:
        path = _unpack(data)
        data = path.packed  # `bytes`, whatever was asked with
        self._size_bytes += len(data)
        if len(self) >= _CACHED_PATHS or self._size_bytes > _CACHED_BYTES:
            self.clear()
            self._size_bytes = len(data)
        self[data] = path
        return path


#: `Path.unpack` through a bounded cache; a hit costs one dictionary lookup.
unpack_cached: Callable[[bytes], Path] = _Unpacked().__getitem__
