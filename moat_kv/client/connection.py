"""One line to a server: many requests in flight, each answered by its seq.

`link` makes one for each line and gives it requests (`call`) and streams (`open_stream`); it ends
when the line breaks, and never reconnects. No task, no lock and no time limit is made for a call:

- What is to be sent is gathered, and one writer sends what has gathered. Only the writer awaits the
  stream, so a caller that is cancelled never leaves half a frame; a frame of its that has not left
  yet is taken back, and a reply that comes later is dropped. Where nothing else is under way the
  caller puts its frame into the socket itself, without waiting; the writer gets what does not fit.
- One reader handles every whole frame in a chunk. It calls streams, and never waits for a consumer:
  each stream has a buffer whose bound is its own. The one exception is a long answer (`get_tree`)
  whose consumer lags: while nothing but such answers is under way on the line, reading pauses, so
  that the server feels it. A call, another stream, or the consumer having caught up lets it go on.
- One sweeper counts time in eighths of the limit and ends what is overdue.
- When nothing has been heard for a while the line is tested with a ping, and given up if that is
  not answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from moat_kv import direct, errors, waiting
from moat_kv.client import handshake, under_way
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State

READ_BYTES = 128 * 1024
#: So many frames that have gathered are sent before the writer has its turn: while many tasks wake
#: up and ask again, the server is at work on the first of them. With 64 calls in flight on two
#: cores that is 1.9 times as many gets a second; with 32 frames 1.5 times.
SLICE = 16
#: After so many seconds without a byte from the server the line is tested; after twice as many
#: it is given up.
SILENCE_S = 10.0
#: A sweep comes so often within the time limit of a request: a limit is exceeded by an eighth.
SWEEPS = 8
#: What takes the longer the more there is to do: answered while the line lives, and never overdue.
UNTIMED = frozenset({"delete_tree"})
#: An overdue line gets so many seconds more: the program itself may have been held up.
_DOUBT_S = 0.5

_REPLY, _ERROR = int(State.REPLY), int(State.ERROR)


class Connection:
    """A line and what is under way on it. `run` must run for anything to happen."""

    def __init__(
        self,
        line: handshake.Line,
        *,
        request_timeout_s: float,
        on_broken: Callable[[Connection, str], None],
        silence_s: float = SILENCE_S,
    ) -> None:
        self.server = line.server
        #: Why it broke; None while it holds.
        self.broken: str | None = None
        self._stream = line.stream
        self._frames = line.reader
        self._timeout_s = request_timeout_s
        self._silence_s = silence_s
        self._on_broken = on_broken
        self._seq = handshake.HELLO_SEQ
        # Frames by seq, which rises, so in the order of sending.
        self._outgoing: dict[int, bytes] = {}
        # What a direct send has left over of its frame; goes before everything else.
        self._rest: bytes = b""
        self._direct: direct.DirectSender | None = None
        # Nothing waits in the event loop's own buffers, nor here in `_rest`: order would hold if
        # something went past them.
        self._clear = True
        # Up to this seq frames have been given to the stream.
        self._handed = self._seq
        self._calls: dict[int, under_way.Call] = {}
        self._streams: dict[int, under_way.Stream] = {}
        # Streams that have not begun yet, with the sweep at which they were asked for.
        self._unstarted: dict[int, int] = {}
        self._sweep = 0
        # While there is nothing to sweep: an idle program is not to be woken up.
        self._nothing_due: anyio.Event | None = None
        self._heard = True
        self._make_waiter = waiting.maker()
        self._wake = self._make_waiter()
        self._idle = False
        self._ended = anyio.Event()
        self._resume: anyio.Event | None = None

    # What the link uses -------------------------------------------------------------------------

    async def call(
        self, action: str, arguments: dict[str, Any], value: bytes | None = None
    ) -> messages.Reply:
        """Ask, and wait for the one answer.

        Raises the error that the server answered, LineBroken, Overdue; BadValue or FrameTooLarge
        before anything is sent.
        """
        seq = self._post(action, arguments, value)
        sweep = None if action in UNTIMED else self._sweep
        call = self._calls[seq] = under_way.Call(self._make_waiter(), sweep)
        if self._nothing_due is not None:
            self._nothing_due.set()
        try:
            await call.done.wait()
        except BaseException:  # cancelled: nobody waits for the answer any more
            self._calls.pop(seq, None)
            self._outgoing.pop(seq, None)
            raise
        reply = call.reply
        if reply is None:
            assert call.failure is not None
            raise call.failure
        if reply.state == _REPLY:
            return reply
        if reply.state == _ERROR:
            raise messages.error_of(reply.fields)
        self._post("stop", {"seq": seq}, None)
        raise errors.BadArguments(action, "it is answered in parts, and needs a stream")

    def open_stream(
        self,
        stream: under_way.Stream,
        action: str,
        arguments: dict[str, Any],
        value: bytes | None = None,
    ) -> int:
        """Ask for a stream; returns its seq. Raises LineBroken, BadValue, FrameTooLarge."""
        seq = self._post(action, arguments, value)
        self._streams[seq] = stream
        self._unstarted[seq] = self._sweep
        if self._nothing_due is not None:
            self._nothing_due.set()
        return seq

    def stop_stream(self, seq: int) -> None:
        """Forget a stream and have the server stop it. Nothing is waited for."""
        if self._streams.pop(seq, None) is None or self.broken is not None:
            return
        self._unstarted.pop(seq, None)
        if self._outgoing.pop(seq, None) is None:
            # Nobody waits for the answer; it is dropped like that of a cancelled call.
            self._post("stop", {"seq": seq}, None)
        self.caught_up()

    def caught_up(self) -> None:
        """A consumer that lagged does so no more: go on reading."""
        if self._resume is not None:
            self._resume.set()

    async def run(self) -> None:
        """Serve the line until it breaks or `close` is called. Closes the stream."""
        self._direct = direct.sender_of(self._stream)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                tasks.start_soon(self._write)
                tasks.start_soon(self._sweep_overdue)
                tasks.start_soon(self._listen_for_silence)
                await self._ended.wait()
                tasks.cancel_scope.cancel()
        finally:
            self.close("the client was closed")
            if self._direct is not None:
                self._direct.close()
            await anyio.aclose_forcefully(self._stream)

    def close(self, reason: str) -> None:
        """Give the line up: everything under way on it fails. Does nothing the second time."""
        if self.broken is not None:
            return
        self.broken = reason
        calls, self._calls = self._calls, {}
        for seq, call in calls.items():
            call.failure = under_way.LineBroken(reason, sent=seq <= self._handed)
            call.done.set()
        streams, self._streams = self._streams, {}
        self._outgoing.clear()
        self._ended.set()
        self._on_broken(self, reason)
        for stream in streams.values():
            stream.interrupted(reason)

    # Sending ------------------------------------------------------------------------------------

    def _post(self, action: str, arguments: dict[str, Any], value: bytes | None) -> int:
        if self.broken is not None:
            raise under_way.LineBroken(self.broken, sent=False)
        seq = self._seq + 1
        frame = messages.pack((seq, action, arguments, value))
        size = len(frame) - frames.HEADER_BYTES
        if size > self.server.frame_limit:
            raise errors.FrameTooLarge(size, self.server.frame_limit)
        self._seq = seq
        if self._calls or not self._idle or not self._send_directly(seq, frame):
            self._gather(seq, frame)
        if self._resume is not None:
            self._resume.set()
        return seq

    def _gather(self, seq: int, frame: bytes) -> None:
        outgoing = self._outgoing
        outgoing[seq] = frame
        if self._idle:
            self._idle = False
            self._wake.set()
        elif self._clear and len(outgoing) >= SLICE:  # joining is dear, not for a line that is full
            sent = self._send_directly(seq, b"".join(outgoing.values()))
            if sent:
                outgoing.clear()

    def _send_directly(self, seq: int, data: bytes) -> bool:
        """Put all frames up to this one into the socket, past the writer and without waiting.

        Returns whether they are dealt with; else the writer is the next to send.
        """
        if self._direct is None or not self._clear:
            return False
        sent = self._direct.send(data)
        if sent:
            self._handed = seq
        if sent < len(data):
            # Full: the writer waits for room.
            self._clear = False
            if sent:
                self._rest = data[sent:]
            if self._idle:
                self._idle = False
                self._wake.set()
        return sent > 0

    async def _write(self) -> None:
        stream = self._stream
        try:
            while True:
                outgoing = self._outgoing
                if self._rest:
                    data, self._rest = self._rest, b""
                elif not outgoing:
                    self._clear = True
                    self._wake = self._make_waiter()
                    self._idle = True
                    await self._wake.wait()
                    continue
                elif len(outgoing) == 1:
                    self._handed, data = outgoing.popitem()
                else:
                    self._handed = next(reversed(outgoing))
                    data = b"".join(outgoing.values())
                    outgoing.clear()
                self._clear = False
                await stream.send(data)
                self._clear = not self._rest
        except handshake.LINE_ERRORS as exc:
            self.close(_why(exc))

    # Reading ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        receive, feed = self._stream.receive, self._frames.feed
        try:
            while True:
                data = await receive(READ_BYTES)
                self._heard = True
                for frame in feed(data):
                    if type(frame) is bytes:
                        self._handle(frame)
                    else:
                        assert isinstance(frame, frames.Oversized)
                        self._refuse_oversized(frame)
                while self._may_pause():
                    self._resume = anyio.Event()
                    await self._resume.wait()
                    self._resume = None
                    self._heard = True
        except errors.ProtocolError as exc:
            self.close(f"the server does not keep to the protocol: {exc}")
        except handshake.LINE_ERRORS as exc:
            self.close(_why(exc))

    def _may_pause(self) -> bool:
        """Whether all that is under way is answers whose consumers lag."""
        streams = self._streams
        if not streams or self._calls or self._outgoing or self.broken is not None:
            return False
        return all(stream.lagging for stream in streams.values())

    def _handle(self, frame: bytes) -> None:
        try:
            reply = messages.unpack_reply(frame)
        except errors.MoatKvError as exc:
            self._fail_one(messages.peek_seq(frame[: frames.HEAD_BYTES]), exc)
            return
        seq = reply.seq
        call = self._calls.pop(seq, None)
        if call is not None:
            call.reply = reply
            call.done.set()
            return
        stream = self._streams.get(seq)
        if stream is not None:
            self._hand_on(seq, stream, reply)
        elif seq == 0 and reply.state == _ERROR:
            raise errors.ProtocolError(f"it says: {messages.error_of(reply.fields)}")
        # Else it is the answer to somebody who was cancelled: dropped.

    def _hand_on(self, seq: int, stream: under_way.Stream, reply: messages.Reply) -> None:
        state = reply.state
        if state == State.ITEM:
            stream.item(reply.fields, reply.value)
        elif state == State.START:
            self._unstarted.pop(seq, None)
            stream.started(reply.fields)
        else:
            error = messages.error_of(reply.fields) if state == State.ERROR else None
            self._end_stream(seq, error)

    def _end_stream(self, seq: int, error: errors.MoatKvError | None) -> None:
        self._unstarted.pop(seq, None)
        self._streams.pop(seq).ended(error)

    def _refuse_oversized(self, frame: frames.Oversized) -> None:
        error = errors.FrameTooLarge(frame.size_bytes, self._frames.limit)
        self._fail_one(messages.peek_seq(frame.head), error)

    def _fail_one(self, seq: int, error: errors.MoatKvError) -> None:
        """An answer that cannot be read: its asker is told, the line lives on."""
        call = self._calls.pop(seq, None)
        stream = self._streams.get(seq)
        if call is not None:
            call.failure = error
            call.done.set()
        elif stream is not None:
            self.stop_stream(seq)
            stream.ended(error)
        elif seq == 0:
            raise errors.BadFrame(f"a reply that nobody can read ({error})")

    # Time ---------------------------------------------------------------------------------------

    async def _sweep_overdue(self) -> None:
        while True:
            if not self._calls and not self._unstarted:
                self._nothing_due = anyio.Event()
                await self._nothing_due.wait()
                self._nothing_due = None
            await anyio.sleep(self._timeout_s / SWEEPS)
            self._sweep += 1
            oldest = self._sweep - SWEEPS
            for seq, call in list(self._calls.items()):
                if call.sweep is None:
                    continue
                if call.sweep >= oldest:
                    break
                del self._calls[seq]
                call.failure = under_way.Overdue(sent=self._take_back(seq))
                call.done.set()
            for seq, sweep in list(self._unstarted.items()):
                if sweep >= oldest:
                    break
                stream = self._streams[seq]
                self.stop_stream(seq)
                stream.ended(errors.RequestTimeout("stream", self._timeout_s))

    def _take_back(self, seq: int) -> bool:
        """Remove a frame that has not left. Returns whether it has left, in part or whole."""
        return self._outgoing.pop(seq, None) is None

    async def _listen_for_silence(self) -> None:
        """Test a line from which nothing comes; without this a vanished server is never missed."""
        while True:
            if not await self._is_silent(self._silence_s):
                continue
            if self.broken is None:
                self._post("ping", {}, None)
            if await self._is_silent(self._silence_s) and await self._is_silent(_DOUBT_S):
                self.close(f"nothing was heard from the server for {2 * self._silence_s:g} s")
                return

    async def _is_silent(self, for_s: float) -> bool:
        """Whether nothing comes for so long, though the line is being read."""
        self._heard = False
        await anyio.sleep(for_s)
        return not self._heard and self._resume is None


def _why(exc: Exception) -> str:
    if isinstance(exc, anyio.EndOfStream):
        return "the server closed the line"
    return f"the line broke ({handshake.plain_words(exc.__cause__ or exc)})"
