"""The text form of a path, both ways, on plain tuples of elements.

`moat_kv.path` calls this from `P()` and `str(path)`. Parsing hands back the elements as they were
written, unchecked but for their form; normalising them and keeping the limits is the path's work.
Nothing is ever evaluated: text is cut by one rule and each special element read by another, in time
linear in the text.

The form, by example (the text at the left, the elements at the right):

    a.b             "a", "b"            :.moat.x     ".moat", "x"
    a::b.c:.d       "a:b", "c.d"        two:_words   "two words"
    a:1:-3          "a", 1, -3          a:1:.5.b     "a", 1.5, "b"
    :t:f:n:e        True, False, None, ""
    :xAB:b01        171, 1              :vab:y00ff   b"ab", b"\\x00\\xff"
    :sYWI=          b"ab"               :1,2         (1, 2)
    :1,             (1,)                :()          ()
    :(b'a',1)       (b"a", 1)           :            the empty path
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from moat_kv.errors import BadPath

#: No path prints longer: at most six characters for each of the 1,024 packed bytes, and change.
MAX_TEXT = 8192
#: How deep tuples may nest; far from any recursion limit, and far beyond any use.
MAX_NESTING = 32
#: Longer runs of digits are no element: 2**64 has 20 digits, in binary 64.
_MAX_NUMBER = 1024
#: How much of a bad text is shown.
_SHOWN = 200

_BODY = re.compile(r"(?:[^:.]|:[:._])*", re.DOTALL)
_ESCAPED = re.compile(r":([:._])")
_PLAIN = {":": ":", ".": ".", "_": " "}
_ESCAPES = str.maketrans({":": "::", ".": ":.", " ": ":_"})

_CONSTANTS: dict[str, Any] = {"t": True, "f": False, "n": None, "e": ""}
_ALLOWED = (
    "after a colon comes one of : . _ (an escape), t f n e, x b v y s with their digits or text, "
    "a number, a quoted string, or a tuple"
)
_TOKEN = re.compile(
    r"""\ *(?:
      (?P<float>[-+]?(?:[0-9][0-9_]*)?(?:\.[0-9][0-9_]*|(?<=[0-9_])\.)(?:[eE][-+]?[0-9_]+)?
               |[-+]?[0-9][0-9_]*[eE][-+]?[0-9_]+)
    | (?P<int>[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+|[-+]?[0-9][0-9_]*)
    | (?P<quoted>b?(?:'(?:[^'\\\x00\r\n]|\\ESC)*'|"(?:[^"\\\x00\r\n]|\\ESC)*")
               |(?:'(?:[^'\\\x00\r\n]|\\ESC|\\UNI)*'|"(?:[^"\\\x00\r\n]|\\ESC|\\UNI)*"))
    | (?P<name>True|False|None)(?![0-9A-Za-z_])
    | (?P<mark>[()\[\],])
    )\ *""".replace("ESC", r"""(?:['"\\abfnrtv]|x[0-9a-fA-F]{2})""").replace(
        "UNI", r"(?:u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"
    ),
    re.VERBOSE,
)
_INFINITY = float("inf")
_NAMES = {"True": True, "False": False, "None": None}
_CLOSING = {"(": ")", "[": "]"}


def shown(text: str) -> str:
    """A text as it may stand in a message: not too long, and fit for UTF-8."""
    clipped = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return clipped.encode("utf-8", "backslashreplace").decode("utf-8")


# Parsing ----------------------------------------------------------------------------------------


def parse(text: str) -> list[Any]:
    """The elements of a path's text.

    Raises BadPath, whose reason names the position (counted from 0) and what may stand there.
    """
    if len(text) > MAX_TEXT:
        raise BadPath(shown(text), f"the text is longer than {MAX_TEXT} characters")
    if not text:
        raise BadPath("", "the text is empty; the root is written as a lone colon")
    if text == ":":
        return []
    elements: list[Any] = []
    pos, end = 0, len(text)
    special = _special_at(text, 0)
    while True:
        start = pos + special
        match = _BODY.match(text, start)
        assert match is not None  # it matches the empty text, too
        pos = match.end()
        if special:
            if pos == start:
                _fail(text, start, f"nothing after the colon; {_ALLOWED}")
            elements.append(_special(text, start, _unescape(match[0])))
        elif pos == start:
            dotted = text.startswith(":", pos)  # a.:1, which is written a:1
            hint = "a colon takes the dot's place" if dotted else "write :e for the empty string"
            _fail(text, start, f"an empty element; {hint}")
        else:
            elements.append(_unescape(match[0]))
        if pos == end:
            return elements
        special = text[pos] == ":"
        if not special:
            pos += 1


def _special_at(text: str, pos: int) -> bool:
    """Whether a special element starts here, rather than an escape or a plain character."""
    return text[pos] == ":" and text[pos + 1 : pos + 2] not in _PLAIN


def _unescape(body: str) -> str:
    if ":" not in body:
        return body
    return _ESCAPED.sub(lambda match: _PLAIN[match[1]], body)


def _fail(text: str, pos: int, reason: str) -> NoReturn:
    raise BadPath(shown(text), f"at position {pos}: {reason}", position=pos)


def _special(text: str, pos: int, body: str) -> Any:
    """The special element whose unescaped body, without its colon, is `body`."""
    if body in _CONSTANTS:
        return _CONSTANTS[body]
    kind, rest = body[0], body[1:]
    if kind == "x":
        return _digits(text, pos, rest, 16, "0123456789abcdefABCDEF", "hex digits after :x")
    if kind == "b" and rest[:1] not in ("'", '"'):
        return _digits(text, pos, rest, 2, "01", "binary digits after :b")
    if kind == "v":
        if not rest.isascii():
            _fail(text, pos, "only ASCII after :v; write other bytes as hex after :y")
        return rest.encode("ascii")
    if kind == "y":
        if len(rest) % 2 or rest.strip("0123456789abcdefABCDEF"):
            _fail(text, pos, "pairs of hex digits after :y")
        return bytes.fromhex(rest)
    if kind == "s":
        try:
            return base64.b64decode(rest, validate=True)
        except ValueError:
            _fail(text, pos, "base64 with its padding after :s")
    if kind in "tfne":
        _fail(text, pos, f"nothing may follow :{kind}; the next element starts with a dot or colon")
    if kind.isalpha() and kind not in "bTFN":
        _fail(text, pos, f"unknown escape :{kind}; {_ALLOWED}")
    return _Literal(text, pos, body).read()


def _digits(text: str, pos: int, digits: str, base: int, allowed: str, what: str) -> int:
    plain = digits.removeprefix("-")
    if not plain or plain.strip(allowed) or len(plain) > _MAX_NUMBER:
        _fail(text, pos, what)
    return int(digits, base)


class _Literal:
    """One literal of Python's, read by rule: a number, a string, a name, or a tuple of these.

    `text` and `start` say where the literal stands in the path, for messages.
    """

    def __init__(self, text: str, start: int, body: str) -> None:
        self._text = text
        self._start = start
        self._body = body
        self._pos = 0
        self._kind: str | None = None
        self._token = ""

    def read(self) -> Any:
        self._advance()
        if self._kind is None or self._token in (",", ")", "]"):
            self._refuse()
        first = self._item(0)
        if self._token == ",":
            first = (first, *self._items_after_comma(1, ""))
        if self._token:
            self._refuse()
        return first

    def _advance(self) -> None:
        if self._pos == len(self._body):
            self._kind, self._token = None, ""
            return
        match = _TOKEN.match(self._body, self._pos)
        if match is None:
            self._refuse()
        self._kind = match.lastgroup
        assert self._kind is not None
        self._token = match[self._kind]
        self._pos = match.end()

    def _refuse(self, reason: str = "") -> NoReturn:
        _fail(self._text, self._start, reason or f"not a literal that is known; {_ALLOWED}")

    def _item(self, depth: int) -> Any:
        """The item at the present token, which is left behind."""
        kind, token = self._kind, self._token
        if kind == "mark":
            closing = _CLOSING.get(token)
            if closing is None:
                self._refuse()
            return self._sequence(depth + 1, closing)
        value = self._atom(kind, token)
        self._advance()
        return value

    def _sequence(self, depth: int, closing: str) -> Any:
        """What is in brackets: a tuple, or in round ones without a comma the item itself."""
        if depth > MAX_NESTING:
            self._refuse(f"tuples may nest {MAX_NESTING} deep")
        self._advance()
        if self._token == closing:
            self._advance()
            return ()
        first = self._item(depth)
        whole: Any = first if closing == ")" else (first,)
        if self._token == ",":
            whole = (first, *self._items_after_comma(depth, closing))
        if self._token != closing:
            self._refuse()
        self._advance()
        return whole

    def _items_after_comma(self, depth: int, closing: str) -> list[Any]:
        items: list[Any] = []
        while self._token == ",":
            self._advance()
            if self._token == closing:
                break
            items.append(self._item(depth))
        return items

    def _atom(self, kind: str | None, token: str) -> Any:
        if kind == "name":
            return _NAMES[token]
        if kind is None:
            self._refuse()
        if len(token) > _MAX_NUMBER and kind != "quoted":
            self._refuse("a number that is longer than any element")
        try:
            if kind == "quoted":
                # One token, a string with no prefix but b and with escapes that are known.
                return ast.literal_eval(token)
            return float(token) if kind == "float" else int(token, 0)
        except (ValueError, SyntaxError):
            self._refuse()


# Printing ---------------------------------------------------------------------------------------


def render(elements: Iterable[Any]) -> str:
    """The text of checked elements; parsing it gives them back."""
    parts: list[str] = []
    for element in elements:
        if type(element) is str and element:
            parts.append("." if parts else "")
            parts.append(element.translate(_ESCAPES))
        else:
            parts.append(":")
            parts.append(_render_special(element))
    return "".join(parts) or ":"


def _render_special(element: Any) -> str:
    if element is True:
        return "t"
    if element is False:
        return "f"
    if element is None:
        return "n"
    if type(element) is str:
        return "e"
    if type(element) is bytes:
        if all(0x20 <= byte < 0x7F for byte in element):
            return "v" + element.decode("ascii").translate(_ESCAPES)
        return "y" + element.hex()
    if type(element) is tuple:
        inner = _render_items(element)
        bare = inner.startswith(tuple("-0123456789"))
        return (inner if bare else f"({inner})").translate(_ESCAPES)
    return _render_literal(element).translate(_ESCAPES)


def _render_items(items: tuple[Any, ...]) -> str:
    text = ",".join(map(_render_literal, items))
    return text + "," if len(items) == 1 else text


def _render_literal(item: Any) -> str:
    if type(item) is tuple:
        return f"({_render_items(item)})"
    if type(item) is float and item in (_INFINITY, -_INFINITY):
        return "1e999" if item > 0 else "-1e999"
    return repr(item)
