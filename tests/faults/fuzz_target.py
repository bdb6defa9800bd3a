"""What the fuzzer feeds: a server's connection without a socket, and requests made of bytes.

Used by `tests.faults.fuzz` (guided by coverage) and by the suite (by chance). `Target.feed` takes
any bytes, makes chunks of them as they could come from a socket, has a real connection of a real
server serve them to the end, and raises `Finding` for whatever is not a proper answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import msgpack

from moat_kv import errors
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import Path
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State
from moat_kv.server import actions, writes
from moat_kv.server.actions import Action
from moat_kv.server.connection import Connection
from moat_kv.server.server import Server

#: A connection that is not at its end by then hangs, in seconds.
LIMIT_S = 10.0
#: After so many inputs there is a new server, so that what they wrote does not pile up.
INPUTS_PER_SERVER = 500
#: An answer to a frame of at most 64 kB that is longer than this in all is out of proportion.
ANSWER_BYTES = 64 * 1024 * 1024


class Finding(Exception):
    """Something that must not come of any input."""


class Source:
    """Bytes, used up as decisions; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        taken = self.bytes(1)
        return taken[0] if taken else 0

    def bytes(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def one_of(self, choices: Any) -> Any:
        return choices[self.byte() % len(choices)]


_TABLE = actions.table()
_ACTIONS = (*_TABLE, "", "nothing")
_EPOCH = "fuzz"
_INTEGERS = (0, 1, -1, 2, 63, 64, 1_000, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
_NUMBERS = (0.0, -1.0, 0.5, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "a", "+", "#", "x" * 300, "ä", "\0", "add", "append", "union", "merge", "member")
_ELEMENTS: tuple[Any, ...] = (
    *("a", "a", "a", "a", "b", "b", "+", "#"),
    *(0, 1, True, 1.0, None, b"a", ("a", 1), "é", ""),
)


def _path(source: Source) -> Any:
    if source.byte() % 16 == 0:
        return msgpack.ExtType(3, source.bytes(source.byte() % 40))
    try:
        return Path(*[source.one_of(_ELEMENTS) for _ in range(source.byte() % 4)])
    except errors.BadPath:
        return None


def _plain(source: Source, depth: int = 0) -> Any:
    """Something that an argument or a value may hold."""
    kind = source.byte() % 12
    if kind >= 9 and depth < 5:
        items = [_plain(source, depth + 1) for _ in range(source.byte() % 5)]
        if kind == 9:
            return items
        return {source.one_of(_TEXTS): item for item in items}
    makers: tuple[Callable[[], Any], ...] = (
        lambda: source.one_of(_INTEGERS),
        lambda: source.one_of(_NUMBERS),
        lambda: source.one_of(_TEXTS),
        lambda: source.bytes(source.byte() % 20),
        lambda: source.byte() % 2 == 0,
        lambda: None,
        lambda: _path(source),
        lambda: msgpack.ExtType(source.byte() % 128, source.bytes(source.byte() % 10)),
        lambda: msgpack.Timestamp(source.byte(), source.byte()),
    )
    return makers[kind % len(makers)]()


def _value(source: Source) -> bytes | None:
    kind = source.byte() % 8
    if kind == 0:
        return None
    if kind == 1:
        return source.bytes(source.byte())
    if kind == 2:
        return b"\x91" * source.byte() + b"\xc0"
    return _packed(_plain(source))


def _packed(thing: Any) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, Path):
            return msgpack.ExtType(3, value.packed)
        raise TypeError(type(value).__name__)

    packed: bytes = msgpack.packb(thing, default=default)
    return packed


def _arguments(source: Source, action: Action | None, sessions: list[str]) -> dict[str, Any]:
    """Mostly what that action takes."""
    arguments: dict[str, Any] = {}
    if action is not None:
        for name, types in action.required.items():
            if source.byte() % 16:
                arguments[name] = _argument(source, name, types, sessions)
        for name, types in action.optional.items():
            if source.byte() % 4 == 0:
                arguments[name] = _argument(source, name, types, sessions)
    if source.byte() % 16 == 0:
        arguments[source.one_of(_TEXTS)] = _plain(source)
    return arguments


def _argument(source: Source, name: str, types: tuple[type, ...], sessions: list[str]) -> Any:
    if source.byte() % 16 == 0:
        return _plain(source)
    if name == "session":
        return source.one_of([*sessions, "none"])
    if name == "seq":
        return source.byte() % 16
    if name == "since":
        return [source.one_of((_EPOCH, "other")), source.one_of(_INTEGERS)]
    if name in ("guard", "fence"):
        return [_path(source), source.one_of(_INTEGERS)]
    if name == "writes":
        return [
            [_path(source), _value(source), _options(source, sessions)]
            for _ in range(source.byte() % 4)
        ]
    if name == "op":
        return source.one_of(("add", "append", "union", "merge", "twist"))
    return _of_type(source, source.one_of(types))


def _options(source: Source, sessions: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, types in writes.SET_OPTIONS.items():
        if source.byte() % 6 == 0:
            options[name] = _argument(source, name, types, sessions)
    return options


def _of_type(source: Source, kind: type) -> Any:
    if kind is Path:
        return _path(source)
    if kind is str:
        return source.one_of(_TEXTS)
    if kind is int:
        return source.one_of(_INTEGERS)
    if kind is float:
        return source.one_of(_NUMBERS)
    if kind is bool:
        return source.byte() % 2 == 0
    return [_plain(source) for _ in range(source.byte() % 4)]


def request(source: Source, sessions: list[str]) -> bytes:
    """The body of a request that is nearly right."""
    seq = source.byte() % 16
    name = source.one_of(_ACTIONS)
    arguments = _arguments(source, _TABLE.get(name), sessions)
    try:
        return _packed([seq, name, arguments, _value(source)])
    except (TypeError, ValueError, OverflowError):
        return b""


class FedStream(anyio.abc.ByteStream):
    """A line whose input is known, and whose output is kept."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self.sent: list[bytes] = []

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self._chunks:
            # What was asked for so far is on its way; others have their turn.
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            raise anyio.EndOfStream
        return self._chunks.pop(0)

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(bytes(item))

    async def send_eof(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


class _Faults(logging.Handler):
    """Keeps the first exception that the server caught and logged as a fault of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and self.first is None:
            self.first = self.format(record)


class Target:
    """A server in a loop of its own. Close it at the end."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._faults = _Faults()
        logging.getLogger("moat_kv").addHandler(self._faults)
        logging.getLogger("moat_kv").propagate = False
        self._inputs = 0
        self._task: asyncio.Task[None] | None = None
        self._sessions: list[str] = []
        self._server: Server
        self._runner.run(self._renew())

    def close(self) -> None:
        self._runner.run(self._end())
        self._runner.close()
        logging.getLogger("moat_kv").removeHandler(self._faults)
        logging.getLogger("moat_kv").propagate = True

    def feed(self, data: bytes) -> None:
        """Serve one input. Raises Finding."""
        self._inputs += 1
        if self._inputs % INPUTS_PER_SERVER == 0:
            self._runner.run(self._renew())
        self._runner.run(self._serve(self._chunks(Source(data))))

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _renew(self) -> None:
        await self._end()
        engine = MemoryEngine()
        engine.epoch = _EPOCH
        self._server = Server("fuzz", engine, frame_limit=64 * 1024)
        self._task = asyncio.create_task(self._server.serve([]))
        self._sessions.clear()
        while self._server.engine.revision == 0:
            # It serves when it has taken a write.
            await asyncio.sleep(0)
            with contextlib.suppress(RuntimeError):
                await self._serve([messages.pack((1, "set", {"path": Path("a")}, b"\x01"))])

    def _chunks(self, source: Source) -> list[bytes]:
        chunks = [b""]
        while not source.is_empty and len(chunks) < 64:
            kind = source.byte() % 8
            if kind == 0:
                chunks[-1] += source.bytes(source.byte())
            elif kind == 1:
                chunks[-1] += frames.frame(source.bytes(source.byte()))
            elif kind == 2:
                chunks.append(b"")
            else:
                body = request(source, self._sessions[-3:])
                if kind == 3 and body:
                    at = source.byte() % len(body)
                    body = body[:at] + bytes([source.byte()]) + body[at + 1 :]
                chunks[-1] += frames.frame(body)
        return [chunk for chunk in chunks if chunk]

    async def _serve(self, chunks: list[bytes]) -> None:
        stream = FedStream(chunks)
        connection = Connection(self._server, stream)
        self._server.connections.add(connection)
        try:
            with anyio.fail_after(LIMIT_S):
                await connection.run()
        except Exception as exc:
            raise Finding("the connection died of this, or hung") from exc
        finally:
            self._server.connections.discard(connection)
            self._server.sessions.line_broken(connection)
        self._judge(connection, b"".join(stream.sent))

    def _judge(self, connection: Connection, sent: bytes) -> None:
        if self._faults.first is not None:
            first, self._faults.first = self._faults.first, None
            raise Finding(f"the server caught a fault of its own: {first}")
        if self._task is not None and self._task.done():
            raise Finding(f"the server has ended: {self._task}")
        if connection.held_bytes or connection.unanswered or connection._streams:
            raise Finding(f"something is left: {connection.held_bytes} bytes held")
        if len(sent) > ANSWER_BYTES:
            raise Finding(f"{len(sent)} bytes of answers")
        reader = frames.FrameReader(frames.SKIP_LIMIT)
        for body in reader.feed(sent):
            assert isinstance(body, bytes)
            self._judge_reply(messages.unpack_reply(body))

    def _judge_reply(self, reply: messages.Reply) -> None:
        state = State(reply.state)
        if state == State.ERROR:
            error = messages.error_of(reply.fields)
            if error.wire_name or type(error) is errors.MoatKvError or not str(error):
                raise Finding(f"an error without a name: {reply}")
        elif state == State.REPLY and "secret" in reply.fields:
            self._sessions.append(reply.fields["session"])
