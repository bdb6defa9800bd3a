"""One client's line: reads requests, hands them to their actions, sends what they answer.

The reader takes a chunk, handles every whole frame in it and sends the collected replies at once;
no task is made for a request. What is answered later (writes, streams) is sent by the writer task.
Streams are pulled: the writer asks them for a slice when the line has room, so that a slow client
costs bounded memory and delays nobody else.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.abc
import anyio.lowlevel

from moat_kv import direct, errors, waiting
from moat_kv.entry import Guard
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State

if TYPE_CHECKING:
    from moat_kv.server.server import Server

#: A chunk as read from the socket, in bytes.
READ_BYTES = 128 * 1024
#: Replies that wait to be sent, in bytes; above the first they are sent before another request is
#: handled, above the second none is handled until the client has taken some.
SEND_LOW_BYTES = 128 * 1024
SEND_HIGH_BYTES = 4 * 1024 * 1024
#: What one client may have in the hands of the engine and of tasks, in bytes; above, none of its
#: requests is handled. Nobody's memory may grow with how fast a client can send.
HELD_LIMIT_BYTES = 1024 * 1024
#: What something that is held counts for beside its value, in bytes: a write, a task.
WRITE_BYTES = 400
WORK_BYTES = 8 * 1024
#: After so many requests of one client the others have their turn.
SLICE_REQUESTS = 256
#: How many streams one connection may have open, and how many of them walk over the tree at a
#: time; the others wait for their turn. A walk holds the names of all that is beside its place.
STREAM_LIMIT = 10_000
WALK_LIMIT = 8
#: A client's first request has to be there within so many seconds; ours greet at once. Whoever only
#: connects would otherwise keep one of the few places (`accepting.connection_limit`).
FIRST_REQUEST_S = 10.0
#: How long the last replies of a connection that ends may take, in seconds.
FAREWELL_S = 2.0


class Stream(Protocol):
    """The answer in parts to one request; see `server.streams`."""

    #: Whether the last `produce` gave the last frames.
    finished: bool

    def start(self) -> bytes:
        """The first frame."""

    @property
    def walks(self) -> bool:
        """Whether the next `produce` walks over the tree, or goes on with that."""

    @property
    def more(self) -> bool:
        """Whether another `produce` has work to do at once."""

    def produce(self) -> list[bytes]:
        """The next frames, made by a bounded amount of work; perhaps none."""

    def close(self) -> None:
        """The client has stopped it, or has gone."""


class Connection:
    """A connected client, as its actions see it."""

    _numbers = itertools.count(1)

    def __init__(self, server: Server, stream: anyio.abc.ByteStream) -> None:
        self.server = server
        self.number = next(self._numbers)
        self.client_name = ""
        #: Ids of the sessions that are bound to this line.
        self.sessions: set[str] = set()
        #: What guards every write of this line, whatever else it carries; see `binding`.
        self.fence: Guard | None = None
        #: Requests whose answers are still to come, and what they hold, in bytes.
        self.unanswered = 0
        self.held_bytes = 0
        self._stream = stream
        self._frames = frames.FrameReader(server.frame_limit)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._sending = False
        self._reading = False
        self._broken = False
        self._direct: direct.DirectSender | None = None
        self._make_waiter = waiting.maker()
        self._wake = self._make_waiter()
        # The writer will look at what there is to send.
        self._roused = False
        # While somebody waits for room.
        self._room: waiting.Waiter | None = None
        self._streams: dict[int, Stream] = {}
        # Streams that may have something to send, in the order of their turns.
        self._ready: dict[int, None] = {}
        # Those that are walking, and those that are to when their turn comes.
        self._walkers: set[int] = set()
        self._parked: dict[int, None] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    # What actions use ---------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """Queue a frame. It leaves with the others of its chunk, or through the writer.

        One that nothing else is to follow soon leaves at once.
        """
        if not self.unanswered and self._direct is not None and self._is_idle():
            sent = self._direct.send(frame)
            if sent == len(frame):
                return
            frame = frame[sent:]
        self._out.append(frame)
        self._out_bytes += len(frame)
        if not self._roused and not self._reading:
            self._rouse()

    def _is_idle(self) -> bool:
        """Whether nothing is read, sent, or waits to be sent."""
        return not (self._reading or self._sending or self._roused or self._out or self._ready)

    def _rouse(self) -> None:
        self._roused = True
        self._wake.set()

    def reply(self, seq: int, fields: dict[str, Any], value: bytes | None = None) -> None:
        self.send(messages.pack((seq, State.REPLY, fields, value)))

    def fail(self, seq: int, error: errors.MoatKvError) -> None:
        self.send(messages.pack((seq, State.ERROR, messages.error_fields(error), None)))

    def open_stream(self, seq: int, stream: Stream) -> None:
        """Answer a request in parts, from now on whenever `stream_ready` says so."""
        if seq in self._streams:
            raise errors.BadArguments("stream", f"seq {seq} is in use by another stream")
        if len(self._streams) >= STREAM_LIMIT:
            raise errors.BadArguments("stream", f"more than {STREAM_LIMIT} streams on a line")
        self._streams[seq] = stream
        self.send(stream.start())
        self.stream_ready(seq)

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    def stream_ready(self, seq: int) -> None:
        """That stream has something to send. It may have been stopped meanwhile."""
        if seq not in self._streams:
            return
        self._ready[seq] = None
        if not self._roused and not self._reading:
            self._rouse()

    def stop_stream(self, seq: int) -> None:
        """End a stream at the client's wish. Stopping one that has ended is no error."""
        stream = self._streams.pop(seq, None)
        self._ready.pop(seq, None)
        self._parked.pop(seq, None)
        if stream is not None:
            self._rest_walker(seq)
            stream.close()
            self.send(messages.pack((seq, State.END, {}, None)))

    def run_later(self, seq: int, work: Callable[[], Awaitable[None]]) -> None:
        """Do something that has to wait (history, a large delete) in a task of its own."""
        assert self._tasks is not None
        self.hold(WORK_BYTES)
        self._tasks.start_soon(self._run_work, seq, work)

    def hold(self, size_bytes: int) -> None:
        """A request will be answered later, and holds that much until `answered` is called."""
        self.unanswered += 1
        self.held_bytes += size_bytes

    def answered(self, size_bytes: int) -> None:
        """What was held is free again; called beside the answer."""
        self.unanswered -= 1
        self.held_bytes -= size_bytes
        if self._room is not None:
            self._room.set()

    # The line -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until the client goes. Errors of the line end it quietly."""
        self.send(messages.pack((0, State.HELLO, self.server.greeting(), None)))
        self._direct = direct.sender_of(self._stream)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._write)
                await self._read()
                await self._say_farewell()
                tasks.cancel_scope.cancel()
        finally:
            if self._direct is not None:
                self._direct.close()
                self._direct = None
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()

    def break_off(self) -> None:
        """End the line at once; the client will come again."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        try:
            await self._flush(streams=False)
            with anyio.move_on_after(FIRST_REQUEST_S) as waiting_for_first:
                whole = await self._receive()
                while not whole:
                    whole = await self._receive()
            if waiting_for_first.cancelled_caught:
                raise errors.ProtocolError(f"no request within {FIRST_REQUEST_S:g} s")
            while True:
                await self._handle_all(whole)
                whole = await self._receive()
        except errors.ProtocolError as exc:
            self.fail(0, exc)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return

    async def _receive(self) -> list[bytes | frames.Oversized]:
        """The frames that are whole with what comes next. Raises ProtocolError, see `feed`."""
        return self._frames.feed(await self._stream.receive(READ_BYTES))

    async def _handle_all(self, whole: Sequence[bytes | frames.Oversized]) -> None:
        """Handle each frame; a few requests may be answered by a lot, or hold a lot."""
        self._reading = True
        try:
            for number, frame in enumerate(whole, 1):
                self._handle(frame)
                if (
                    self._out_bytes > SEND_LOW_BYTES
                    or self.held_bytes > HELD_LIMIT_BYTES
                    or number % SLICE_REQUESTS == 0
                ):
                    self._reading = False
                    await self._wait_for_room()
                    self._reading = True
        finally:
            self._reading = False
        if not self._sending:
            await self._flush(streams=False)

    async def _wait_for_room(self) -> None:
        # Others have their turn, however fast this client takes what it asked for.
        await anyio.lowlevel.checkpoint()
        if not self._sending:
            await self._flush(streams=False)
        while self._out_bytes > SEND_HIGH_BYTES or self.held_bytes > HELD_LIMIT_BYTES:
            if self._broken:
                raise anyio.BrokenResourceError
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        """Until something was sent or answered, or the line broke."""
        self._room = self._make_waiter()
        try:
            await self._room.wait()
        finally:
            self._room = None

    def _handle(self, frame: bytes | frames.Oversized) -> None:
        seq = 0
        try:
            if type(frame) is not bytes:
                assert isinstance(frame, frames.Oversized)
                seq = messages.peek_seq(frame.head)
                raise errors.FrameTooLarge(frame.size_bytes, self._frames.limit)
            request = messages.unpack_request(frame)
            seq = request.seq
            action = self.server.actions.get(request.action)
            if action is None:
                raise errors.UnknownAction(request.action[:64])
            action.check(request.arguments)
            action.handler(self, request)
        except errors.MoatKvError as exc:
            if not seq and isinstance(frame, bytes):
                seq = messages.peek_seq(frame[: frames.HEAD_BYTES])
            self.fail(seq, exc)

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = self._make_waiter()
                self._roused = False
                if not self._sending:
                    await self._flush(streams=True)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            # The reader notices on its own, unless it waits for room; what could not be sent has
            # no reader any more.
            self._broken = True
            self._make_room()

    async def _flush(self, *, streams: bool) -> None:
        """Send all that waits, replies before streams. One at a time: `_sending` says who.

        The reader leaves the streams to the writer, or a long one would keep it from reading.
        """
        self._sending = True
        try:
            while self._out or (streams and self._ready):
                if not self._out:
                    self._pull()
                if not self._out:
                    # A walk that found nothing in its slice: others come first.
                    await anyio.lowlevel.checkpoint()
                    continue
                data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
                self._out.clear()
                self._out_bytes = 0
                # With more to come others have their turn in between.
                sent = self._direct.send(data) if self._direct and not self._ready else 0
                if sent < len(data):
                    await self._stream.send(data[sent:] if sent else data)
                self._make_room()
        finally:
            self._sending = False
        if self._ready:
            self._rouse()

    def _pull(self) -> None:
        """Take one slice from each stream that is ready, until there is enough to send."""
        for seq in list(self._ready):
            if self._out_bytes > READ_BYTES:
                return
            del self._ready[seq]
            stream = self._streams[seq]
            if stream.walks and not self._may_walk(seq):
                continue
            for frame in stream.produce():
                self._out.append(frame)
                self._out_bytes += len(frame)
            if stream.finished:
                del self._streams[seq]
                self._rest_walker(seq)
                stream.close()
                continue
            if not stream.walks:
                self._rest_walker(seq)
            if stream.more:
                # Its next turn is after everybody else's.
                self._ready[seq] = None

    def _may_walk(self, seq: int) -> bool:
        if seq in self._walkers or len(self._walkers) < WALK_LIMIT:
            self._walkers.add(seq)
            return True
        self._parked[seq] = None
        return False

    def _rest_walker(self, seq: int) -> None:
        """That stream walks no more; the next one may."""
        if seq in self._walkers:
            self._walkers.discard(seq)
            if self._parked:
                next_one = next(iter(self._parked))
                del self._parked[next_one]
                self.stream_ready(next_one)

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()

    async def _run_work(self, seq: int, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except errors.MoatKvError as exc:
            self.fail(seq, exc)
        finally:
            self.answered(WORK_BYTES)

    async def _say_farewell(self) -> None:
        """Send what is left to a client that closed only its own direction."""
        with anyio.move_on_after(FAREWELL_S):
            try:
                while self.unanswered > 0 and not self._broken:
                    await self._wait_for_change()
                if not self._sending:
                    await self._flush(streams=True)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                return
