"""Messages: what is in a frame.

A request is `[seq, action, arguments, value]`, a reply `[seq, state, fields, value]`. The value
travels packed, as a byte string, or as nil. Paths are extension type 3. Both sides use this
module; it does no I/O and knows nothing of what an action means.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgpack

from moat_kv import errors, path
from moat_kv.proto import frames

PROTOCOL_VERSION = 1
PATH_EXTENSION = 3


class State(enum.IntEnum):
    """What a reply is."""

    REPLY = 0  # the only answer to a request
    START = 1  # a stream begins
    ITEM = 2  # one part of a stream
    END = 3  # the stream is over
    ERROR = 4  # the request, or the stream, failed; fields: {"error": name, "facts": {...}}
    HELLO = 5  # the server's greeting, seq 0


class Request(NamedTuple):
    """What a client asks. `seq` is its own, from 1, and names the answers."""

    seq: int
    action: str
    arguments: dict[str, Any]
    value: bytes | None


class Reply(NamedTuple):
    """What a server answers."""

    seq: int
    state: int
    fields: dict[str, Any]
    value: bytes | None


def _extension(code: int, data: bytes) -> Any:
    if code == PATH_EXTENSION:
        return path.unpack_cached(data)
    raise errors.BadFrame(f"extension type {code} is not known here")


def _default(value: Any) -> Any:
    if type(value) is path.Path:
        # Past ExtType's own constructor, whose checks take as long as packing the rest.
        return _new(msgpack.ExtType, (PATH_EXTENSION, value.packed))
    raise errors.BadValue(f"{type(value).__name__} cannot be sent here")


_new = tuple.__new__
_pack_length = frames.LENGTH.pack

#: Packers that nobody uses just now. Packing a path runs Python code, where another thread (a
#: blocking client beside a server) may come in: each call takes a packer out for itself.
_packers: list[msgpack.Packer] = []


def pack(message: Request | Reply | tuple[int, Any, dict[str, Any], bytes | None]) -> bytes:
    """The whole frame of a message, length and all."""
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=_default, autoreset=True)
    body = packer.pack(message)
    # One that has failed is not put back: what it holds by then is nobody's message.
    _packers.append(packer)
    return _pack_length(len(body)) + body


def _unpack(body: bytes) -> list[Any]:
    try:
        message = msgpack.unpackb(body, ext_hook=_extension, strict_map_key=True)
    except errors.MoatKvError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise errors.BadFrame(str(exc) or type(exc).__name__) from exc
    if type(message) is not list or len(message) != 4:
        raise errors.BadFrame("a message is an array of four")
    return message


def unpack_request(body: bytes) -> Request:
    """The request in a frame. Raises BadFrame, with the fact `seq` if that was readable."""
    message = _unpack(body)
    seq, action, arguments, value = message
    if (
        type(seq) is int
        and seq > 0
        and type(action) is str
        and type(arguments) is dict
        and (value is None or type(value) is bytes)
    ):
        # Past NamedTuple's own constructor, which is Python: for each request of each client.
        return _new(Request, message)
    if type(seq) is not int or seq < 1:
        raise errors.BadFrame("seq is an integer from 1")
    if type(action) is not str:
        raise errors.BadFrame("the action is a string", seq=seq)
    if arguments is None:
        arguments = {}
    elif type(arguments) is not dict:
        raise errors.BadFrame("the arguments are a mapping", seq=seq)
    if value is not None and type(value) is not bytes:
        raise errors.BadFrame("the value is a byte string that holds msgpack, or nil", seq=seq)
    return Request(seq, action, arguments, value)


def unpack_reply(body: bytes) -> Reply:
    """The reply in a frame. Raises BadFrame."""
    seq, state, fields, value = _unpack(body)
    if type(seq) is not int or type(state) is not int:
        raise errors.BadFrame("seq and state are integers")
    return _new(Reply, (seq, state, fields or {}, value))


def peek_seq(head: bytes) -> int:
    """The sequence number at the start of a frame that could not be read whole; 0 if unreadable."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(head)
    try:
        unpacker.read_array_header()
        seq = unpacker.unpack()
    except (ValueError, TypeError, msgpack.UnpackException):
        return 0
    return seq if type(seq) is int and seq > 0 else 0


def error_fields(error: errors.MoatKvError) -> dict[str, Any]:
    """The fields of an `ERROR` reply."""
    name, facts = errors.to_wire(error)
    return {"error": name, "facts": facts}


def error_of(fields: dict[str, Any]) -> errors.MoatKvError:
    """The error that an `ERROR` reply carries."""
    name, facts = fields.get("error"), fields.get("facts")
    if not isinstance(name, str) or not isinstance(facts, dict):
        return errors.BadFrame(f"an error without a name: {fields!r:.200}")
    return errors.from_wire(name, facts)
