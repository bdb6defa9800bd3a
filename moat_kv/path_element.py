"""The elements of paths: what may be one, its one normal form, its key, its place in an order.

`moat_kv.path` builds paths of what `clean` hands back, and gives the public names on. Nothing here
knows of whole paths or of their text.
"""

from __future__ import annotations

import unicodedata
from typing import Any, Final, TypeAlias

import msgpack

from moat_kv.errors import BadPath
from moat_kv.path_text import MAX_NESTING, shown

Element: TypeAlias = "str | int | float | bool | bytes | tuple[Element, ...] | None"
#: What may be given where an element is meant: a list is turned into a tuple.
ElementLike: TypeAlias = "Element | list[Any]"
#: The key of one element in a dictionary: the str itself, or any other element's packed form.
Key: TypeAlias = "str | PackedKey"

#: How long a packed path is at most, so that it fits a subject of NATS.
MAX_BYTES: Final = 1024
#: A text longer than this (in characters) cannot fit, however it is normalised.
_MAX_STR: Final = 4 * MAX_BYTES

#: The msgpack of a clean element, or of a tuple of them. One packer serves all threads: on clean
#: elements it neither runs Python code nor makes objects that would, so it is never entered twice.
pack_clean: Final = msgpack.Packer(autoreset=True).pack


class PackedKey(bytes):
    """The key of an element that is not a str: its msgpack, in a type that equals no other key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"PackedKey({bytes.__repr__(self)})"


def element_key(element: object) -> Key:
    """The dictionary key of an element: a str itself, anything else packed. Raises BadPath."""
    cleaned = clean(element)
    return cleaned if type(cleaned) is str else PackedKey(pack_clean(cleaned))


def keys_of(elements: tuple[Element, ...]) -> tuple[Key, ...]:
    """The keys of clean elements; if all are str, the very same tuple."""
    if all(type(element) is str for element in elements):
        return elements  # type: ignore[return-value]  # all are str
    return tuple(
        [
            element if type(element) is str else PackedKey(pack_clean(element))
            for element in elements
        ]
    )


def pack_elements(elements: tuple[Element, ...]) -> bytes:
    """The msgpack of each of at most 64 clean elements, one after the other."""
    # An array's header is one byte up to 15 elements, three from there on.
    packed: bytes = pack_clean(elements)
    return packed[1 if len(elements) < 16 else 3 :]


# Checking ---------------------------------------------------------------------------------------


def clean(element: Any, depth: int = 0) -> Any:
    """The element in its one form: an exact type, normalised; raises BadPath if there is none."""
    kind = type(element)
    if kind is str:
        return _clean_str(element)
    if element is None or kind is bool:
        return element
    if kind is int:
        if -(2**63) <= element < 2**64:
            return element
        raise BadPath(described(element), "an integer must be within -2**63 .. 2**64-1")
    if kind is float:
        if element != element:
            raise BadPath("nan", "NaN is equal to nothing, so it cannot be in a path")
        return element + 0.0  # makes -0.0 into 0.0
    if kind is bytes:
        return _short(element, MAX_BYTES)
    if kind is tuple or kind is list:
        if depth >= MAX_NESTING:
            raise BadPath(described(element), f"tuples may nest {MAX_NESTING} deep")
        _short(element, MAX_BYTES)
        return tuple([clean(item, depth + 1) for item in element])
    return _clean_other(element, depth)


def _short(element: Any, limit: int) -> Any:
    """Spare the work on what is far too long anyway."""
    if len(element) > limit:
        raise BadPath(described(element), f"a path has at most {MAX_BYTES} packed bytes")
    return element


def _clean_str(text: str) -> str:
    _short(text, _MAX_STR)
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadPath(described(text), "a lone surrogate is no character") from None
    return unicodedata.normalize("NFC", text)


def _clean_other(element: Any, depth: int) -> Any:
    """Subclasses become what they are at heart, so that equality and hash are ours."""
    if isinstance(element, msgpack.ExtType | PackedKey):
        pass
    elif isinstance(element, str):
        return _clean_str(str.__str__(element))
    elif isinstance(element, int):
        return clean(int.__int__(element))
    elif isinstance(element, float):
        return clean(float.__float__(element))
    elif isinstance(element, bytes):
        return clean(bytes.__bytes__(element))
    elif isinstance(element, tuple | list):
        return clean(tuple(element), depth)
    raise BadPath(described(element), f"{type(element).__name__} cannot be in a path")


def described(element: Any) -> str:
    """An element as a message shows it, whatever it is, without running its own code."""
    kind = type(element)
    if kind is str:
        return shown(element)
    if kind is bytes:
        return shown(repr(element[:64]))
    if kind is int:
        bits = element.bit_length()
        return str(element) if bits <= 256 else f"<integer of {bits} bits>"
    return f"<{kind.__name__}>"


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


def order_of(elements: tuple[Element, ...]) -> tuple[Any, ...]:
    """What clean elements sort by: type by type, and within one by value."""
    return tuple([_element_order(element) for element in elements])


def _element_order(element: Any) -> tuple[int, Any]:
    kind = type(element)
    if kind is tuple:
        return _RANKS[kind], order_of(element)
    return _RANKS[kind], 0 if element is None else element
