"""Paths: the immutable addresses of entries, and their packed form.

Everything else takes paths from here. A path's elements are str, int, float, bool, None, bytes, or
tuples of these; its keys are what a dictionary tells apart as a path does (True, 1 and 1.0 are
three elements, though Python's dictionaries see one). Checks happen once, when a path is made; what
a path holds is then trusted. The text form is read and written by `moat_kv.path_text`. Nothing here
does I/O.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, TypeAlias, final, overload

import msgpack

from moat_kv import path_text
from moat_kv.errors import BadPath

Element: TypeAlias = "str | int | float | bool | None | bytes | tuple[Element, ...]"
#: What may be given where an element is meant: a list is turned into a tuple.
ElementLike: TypeAlias = "Element | list[Any]"
#: The key of one element in a dictionary: the str itself, or any other element's packed form.
Key: TypeAlias = "str | PackedKey"

#: How many elements a path has at most.
MAX_ELEMENTS: Final = 64
#: How long a packed path is at most, so that it fits a subject of NATS.
MAX_BYTES: Final = 1024
#: A text longer than this (in characters) cannot fit, however it is normalised.
_MAX_STR: Final = 4 * MAX_BYTES
#: What `unpack_cached` keeps: so many paths, and so many bytes of them in packed form.
_CACHED_PATHS: Final = 65536
_CACHED_BYTES: Final = 16 << 20

# One packer for all: it runs no Python code on checked elements, so it is never entered twice.
_pack = msgpack.Packer(autoreset=True).pack


class PackedKey(bytes):
    """The key of an element that is not a str: its msgpack, in a type that equals no other key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"PackedKey({bytes.__repr__(self)})"


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
    #: At least as many bytes as the packed form has; `_packed` and `_hash` are set when first asked.
    _size_bound: int
    _packed: bytes
    _hash: int

    def __init__(self, *elements: ElementLike) -> None:
        for element in elements:
            if type(element) is not str:
                break
        else:
            text = "".join(elements)  # type: ignore[arg-type]
            # A str's header takes up to three bytes at these lengths; ASCII is always normalised.
            bound = len(text) + 3 * len(elements)
            if bound <= MAX_BYTES and len(elements) <= MAX_ELEMENTS and text.isascii():
                _set_elements(self, elements)
                _set_keys(self, elements)
                _set_size_bound(self, bound)
                return
        self._init_checked(elements)

    def _init_checked(self, elements: tuple[Any, ...]) -> None:
        """The slow way of making a path, for anything but short ASCII names."""
        if len(elements) > MAX_ELEMENTS:
            raise BadPath(
                f"<{len(elements)} elements>", f"a path has at most {MAX_ELEMENTS} elements"
            )
        clean = tuple([_clean(element, 0) for element in elements])
        packed = _pack_elements(clean)
        if len(packed) > MAX_BYTES:
            raise BadPath(
                path_text.shown(path_text.render(clean)),
                f"a path has at most {MAX_BYTES} packed bytes, this one has {len(packed)}",
            )
        _set_elements(self, clean)
        _set_keys(self, _keys_of(clean))
        _set_size_bound(self, len(packed))
        _set_packed(self, packed)

    @staticmethod
    def build(elements: Iterable[ElementLike]) -> Path:
        """The path with these elements; a text is refused, since `P` is what reads texts."""
        if isinstance(elements, str | bytes):
            raise BadPath(_described(elements), "a sequence of elements is needed; P() reads texts")
        return Path(*elements)

    @staticmethod
    def _trusted(elements: tuple[Any, ...], keys: tuple[Key, ...], size_bound: int) -> Path:
        """A path of elements that come from other paths, within the limits."""
        if keys is not elements and all(type(key) is str for key in keys):
            keys = elements
        path = object.__new__(Path)
        _set_elements(path, elements)
        _set_keys(path, keys)
        _set_size_bound(path, size_bound)
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
        try:
            return self._packed
        except AttributeError:
            packed = _pack_elements(self.elements)
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
            return self.elements[index]  # type: ignore[index]
        elements, keys = self.elements, self.keys
        part = elements[index]
        return Path._trusted(part, part if keys is elements else keys[index], self._size_bound)

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
        return Path._trusted(elements, self.keys + other.keys, bound)

    __or__ = __add__

    def __truediv__(self, element: ElementLike) -> Path:
        return self + Path(element)

    def __mod__(self, count: int) -> Path:
        if type(count) is not int:
            return NotImplemented
        if not 0 <= count <= len(self.elements):
            raise BadPath(
                path_text.shown(str(self)),
                f"cannot drop {_described(count)} of {len(self.elements)} elements",
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


# The slots' own setters go past `Path.__setattr__`.
_set_elements: Callable[[Path, tuple[Any, ...]], None] = Path.__dict__["elements"].__set__
_set_keys: Callable[[Path, tuple[Any, ...]], None] = Path.__dict__["keys"].__set__
_set_size_bound: Callable[[Path, int], None] = Path.__dict__["_size_bound"].__set__
_set_packed: Callable[[Path, bytes], None] = Path.__dict__["_packed"].__set__
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


def element_key(element: object) -> Key:
    """The dictionary key of an element: a str itself, anything else packed. Raises BadPath."""
    clean = _clean(element, 0)
    return clean if type(clean) is str else PackedKey(_pack(clean))


def key_element(key: Key) -> Element:
    """The element whose key this is, as `Path.keys` or `element_key` gave it."""
    return _unpack(key).elements[0] if type(key) is PackedKey else key


# Packing ----------------------------------------------------------------------------------------


def _pack_elements(elements: tuple[Element, ...]) -> bytes:
    # An array's header is one byte up to 15 elements, three from there on.
    packed: bytes = _pack(elements)
    return packed[1 if len(elements) < 16 else 3 :]


def _keys_of(elements: tuple[Element, ...]) -> tuple[Key, ...]:
    if all(type(element) is str for element in elements):
        return elements  # type: ignore[return-value]
    return tuple(
        [element if type(element) is str else PackedKey(_pack(element)) for element in elements]
    )


def _refuse_extension(code: int, data: bytes) -> None:
    raise ValueError(f"extension type {code} cannot be in a path")


def _unpack(data: bytes) -> Path:
    if len(data) > MAX_BYTES:
        raise BadPath(_described(data), f"a packed path has at most {MAX_BYTES} bytes")
    data = bytes(data)
    unpacker = msgpack.Unpacker(
        use_list=False, ext_hook=_refuse_extension, max_buffer_size=MAX_BYTES, timestamp=0
    )
    unpacker.feed(data)
    try:
        elements = list(unpacker)
    except (ValueError, TypeError) as error:
        raise BadPath(_described(data), f"not a packed path: {error}") from None
    if unpacker.tell() != len(data):
        raise BadPath(_described(data), "the packed path is cut short")
    path = Path(*elements)
    # Whatever could have been written in another way (a longer header, a string not normalised)
    # would make two packed forms of one path.
    if path.packed != data:
        raise BadPath(_described(data), "not the canonical packed form")
    _set_packed(path, data)
    return path


class _Unpacked(dict[bytes, Path]):
    """Packed paths and their paths, up to a bound on their number and size; then it starts anew."""

    def __init__(self) -> None:
        super().__init__()
        self._size_bytes = 0

    def __missing__(self, data: bytes) -> Path:
        path = _unpack(data)
        self._size_bytes += len(path.packed)
        if len(self) >= _CACHED_PATHS or self._size_bytes > _CACHED_BYTES:
            self.clear()
            self._size_bytes = len(path.packed)
        self[path.packed] = path
        return path


#: `Path.unpack` through a bounded cache; a hit costs one dictionary lookup.
unpack_cached: Callable[[bytes], Path] = _Unpacked().__getitem__


# Checking ---------------------------------------------------------------------------------------


def _clean(element: Any, depth: int) -> Any:
    """The element in its one form: an exact type, normalised; raises BadPath if there is none."""
    kind = type(element)
    if kind is str:
        return _clean_str(element)
    if element is None or kind is bool or kind is bytes:
        return element
    if kind is int:
        if -(2**63) <= element < 2**64:
            return element
        raise BadPath(_described(element), "an integer must be within -2**63 .. 2**64-1")
    if kind is float:
        if element != element:
            raise BadPath("nan", "NaN is equal to nothing, so it cannot be in a path")
        return element + 0.0  # makes -0.0 into 0.0
    if kind is tuple or kind is list:
        if depth >= path_text.MAX_NESTING:
            raise BadPath("<tuple>", f"tuples may nest {path_text.MAX_NESTING} deep")
        return tuple([_clean(item, depth + 1) for item in element])
    return _clean_other(element, depth)


def _clean_str(text: str) -> str:
    if text.isascii():
        return text
    if len(text) > _MAX_STR:
        raise BadPath(_described(text), f"a path has at most {MAX_BYTES} packed bytes")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadPath(_described(text), "a lone surrogate is no character") from None
    return unicodedata.normalize("NFC", text)


def _clean_other(element: Any, depth: int) -> Any:
    """Subclasses become what they are at heart, so that equality and hash are ours."""
    if isinstance(element, msgpack.ExtType | PackedKey):
        pass
    elif isinstance(element, str):
        return _clean_str(str.__str__(element))
    elif isinstance(element, int):
        return _clean(int.__int__(element), depth)
    elif isinstance(element, float):
        return _clean(float.__float__(element), depth)
    elif isinstance(element, bytes):
        return bytes.__bytes__(element)
    elif isinstance(element, tuple | list):
        return _clean(tuple(element), depth)
    reason = f"{type(element).__name__} cannot be in a path"
    if isinstance(element, Path):
        reason += "; join paths with +"
    raise BadPath(_described(element), reason)


def _described(element: Any) -> str:
    """An element as a message shows it, whatever it is, without running its own code."""
    if type(element) is str:
        return path_text.shown(element)
    if type(element) is bytes:
        return path_text.shown(repr(element[:64]))
    if type(element) is int:
        bits = element.bit_length()
        return str(element) if bits <= 256 else f"<integer of {bits} bits>"
    return f"<{type(element).__name__}>"


# Order ------------------------------------------------------------------------------------------

_RANKS: dict[type, int] = {
    type(None): 0,
    bool: 1,
    int: 2,
    float: 3,
    str: 4,
    bytes: 5,
    tuple: 6,
}


def _order(path: Path, other: Path) -> tuple[Any, ...]:
    if path.keys is path.elements and other.keys is other.elements:
        return path.elements
    return tuple([_element_order(element) for element in path.elements])


def _element_order(element: Any) -> tuple[int, Any]:
    kind = type(element)
    if kind is tuple:
        return 6, tuple([_element_order(item) for item in element])
    return _RANKS[kind], 0 if element is None else element
