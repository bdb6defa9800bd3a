"""The names that a network has on NATS: its stream, its subjects, and a path as a subject.

Used by every part of `engine.nats`. A path's elements are the tokens of its subject, so that a
plain path reads as itself and any NATS client can watch a subtree: ASCII letters, digits, `-`, `_`
and `/` stand for themselves, every other byte of the UTF-8 is `=XX` (`=` too), the empty text `=-`,
an integer `=i3`, any other element `=x` and the hex of its msgpack. Pure.

Below `moat.NET`: `kv` and `kv.>` are the entries, `log.floor` says how far deletions are forgotten,
`log.probe` takes what is written only to see whether writing is possible, `guard` what guards a
write (see `nats_publish`); these are in the stream. `msg.>` are the
fleeting messages, which nobody keeps.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgpack

from moat_kv import errors
from moat_kv.path import Path

_PREFIX: Final = "moat"
#: Stands for a topic without elements; no element is written so.
_ROOT_TOPIC: Final = "=="
#: How many paths' subjects are remembered, both ways.
_CACHED: Final = 16_384

_PLAIN = re.compile(r"[A-Za-z0-9_/-]+")
_NETWORK = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CODED = re.compile(rb"=([0-9A-F]{2})")
_PLAIN_BYTES: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/"
)

_pack = msgpack.Packer(autoreset=True).pack


class Names:
    """The names of one network. Raises BadConfig for a name that cannot be one."""

    def __init__(self, network: str) -> None:
        if _NETWORK.fullmatch(network) is None:
            raise errors.BadConfig(
                "network",
                f"{network!r}: letters, digits, - and _ make a network's name, 64 at most",
            )
        base = f"{_PREFIX}.{network}"
        self.network = network
        self.stream = f"{_PREFIX}-{network}"
        self.all = f"{base}.>"
        self.root = f"{base}.kv"
        self.floor = f"{base}.log.floor"
        self.probe = f"{base}.log.probe"
        self.guard = f"{base}.guard"
        self.messages = f"{base}.msg.>"
        self._below_root = f"{self.root}."
        self._message = f"{base}.msg."
        #: What the stream takes.
        self.stored = (self.root, f"{self.root}.>", f"{base}.log.>", self.guard)
        #: What a server follows: all but the guards.
        self.followed = (self.root, f"{self.root}.>", f"{base}.log.>")
        self._subjects: dict[Path, str] = {}
        self._paths: dict[str, Path] = {}

    def subject(self, path: Path) -> str:
        """The subject of an entry."""
        found = self._subjects.get(path)
        if found is None:
            found = ".".join([self.root, *[token(element) for element in path]])
            if len(self._subjects) >= _CACHED:
                self._subjects.clear()
            self._subjects[path] = found
        return found

    def path(self, subject: str) -> Path | None:
        """The path of an entry's subject; None for any other subject. Raises BadPath."""
        found = self._paths.get(subject)
        if found is None:
            if not subject.startswith(self._below_root):
                return Path() if subject == self.root else None
            found = path_of(subject[len(self._below_root) :])
            if len(self._paths) >= _CACHED:
                self._paths.clear()
            self._paths[subject] = found
        return found

    def message(self, topic: Path) -> str:
        """The subject of a fleeting message."""
        tokens = [token(element) for element in topic] or [_ROOT_TOPIC]
        return self._message + ".".join(tokens)

    def topic(self, subject: str) -> Path:
        """The topic of a fleeting message. Raises BadPath."""
        text = subject[len(self._message) :]
        return Path() if text == _ROOT_TOPIC else path_of(text)


def token(element: Any) -> str:
    """One element as a token of a subject."""
    if type(element) is str:
        if _PLAIN.fullmatch(element):
            return element
        if not element:
            return "=-"
        return "".join(
            [chr(b) if b in _PLAIN_BYTES else f"={b:02X}" for b in element.encode("utf-8")]
        )
    if type(element) is int:
        return f"=i{element}"
    return "=x" + _pack(element).hex()


def path_of(tokens: str) -> Path:
    """The path of a subject's tokens below a root. Raises BadPath if they are nothing of ours."""
    if "=" not in tokens:
        return Path(*tokens.split("."))
    try:
        return Path(*[_element(each) for each in tokens.split(".")])
    except errors.BadPath:
        raise
    except (ValueError, msgpack.UnpackException) as exc:
        raise errors.BadPath(tokens, f"not the subject of a path: {exc}") from exc


def _element(text: str) -> Any:
    if not text.startswith("="):
        return _text(text)
    match text[1:2]:
        case "-":
            return ""
        case "i":
            return int(text[2:])
        case "x":
            return msgpack.unpackb(bytes.fromhex(text[2:]), use_list=False)
    return _text(text)


def _text(token_: str) -> str:
    if "=" not in token_:
        return token_
    plain = _CODED.sub(lambda found: bytes.fromhex(found[1].decode()), token_.encode("ascii"))
    return plain.decode("utf-8")
