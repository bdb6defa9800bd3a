"""The line of a script that is tried out: what it asks and writes passes here.

`ground` makes one for the script's client. Before something is read, `behind` brings it to the
ground; what is written is told. Calls and streams are asked in the order in which the script made
them, also where an earlier one has to wait for what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio

from moat_kv import codec, errors
from moat_kv.client import link, streams
from moat_kv.client.address import Address
from moat_kv.proto import messages
from moat_kv_runner.trying import behind, happenings

#: Nothing on a ground's lines is overdue, however slow the script or fast its clock.
NEVER_S = 1e9

Tell = Callable[[happenings.Happening], None]


def unhurried(addresses: Sequence[Address], name: str) -> link.Link:
    """A plain line to a ground, without limits of time."""
    return link.Link(addresses, name=name, **_UNHURRIED)


_UNHURRIED: Any = {
    "connect_timeout_s": NEVER_S,
    "request_timeout_s": NEVER_S,
    "silence_s": NEVER_S,
    "reconnect": False,
}


class TrialLink(link.Link):
    """See above."""

    def __init__(
        self, addresses: Sequence[Address], *, tell: Tell, source: behind.Behind | None
    ) -> None:
        super().__init__(addresses, name="trial", **_UNHURRIED)
        self._on_written = tell
        self._source = source
        # Streams whose subtree is on its way.
        self._opening: dict[streams.Stream, anyio.Event] = {}

    async def call(
        self,
        action: str,
        arguments: dict[str, Any],
        value: bytes | None = None,
        *,
        repeat: bool = False,
    ) -> messages.Reply:
        source = self._source
        if source is None:
            reply = await super().call(action, arguments, value, repeat=repeat)
        else:
            for earlier in list(self._opening.values()):
                await earlier.wait()
            claimed = await source.prepare(action, arguments)
            if action == "send" and source.lets_through:
                reply = await source.real.request(action, arguments, value)
            else:
                try:
                    reply = await super().call(action, arguments, value, repeat=repeat)
                    await source.written(action, arguments, value)
                except errors.MoatKvError:
                    await source.failed(claimed)
                    raise
        for each in _told(action, arguments, value, reply):
            self._on_written(each)
        return reply

    def open_stream(self, stream: streams.Stream) -> None:
        if self._source is None or not behind.reads(stream.action):
            super().open_stream(stream)
            return
        if self.closed:
            raise errors.Disconnected("the client was closed")
        self._opening[stream] = anyio.Event()
        self._source.tasks.start_soon(self._open, self._source, stream)

    async def _open(self, source: behind.Behind, stream: streams.Stream) -> None:
        done = self._opening[stream]
        try:
            await source.prepare(stream.action, stream.ask())
            if stream in self._opening:
                super().open_stream(stream)
        except errors.MoatKvError as exc:
            stream.ended(exc)
        finally:
            self._opening.pop(stream, None)
            done.set()

    def close_stream(self, stream: streams.Stream) -> None:
        opening = self._opening.pop(stream, None)
        if opening is not None:
            opening.set()
        super().close_stream(stream)


def _told(
    action: str, arguments: dict[str, Any], value: bytes | None, reply: messages.Reply
) -> Iterator[happenings.Happening]:
    """What a call that has succeeded did."""
    if action == "set":
        yield happenings.Wrote(path=arguments["path"], value=_unpacked(value))
    elif action == "patch":
        yield happenings.Wrote(path=arguments["path"], value=_unpacked(reply.value))
    elif action == "delete":
        if reply.fields.get("deleted"):
            yield happenings.Deleted(path=arguments["path"])
    elif action == "delete_tree":
        yield happenings.Deleted(path=arguments["path"], tree=True)
    elif action == "send":
        yield happenings.Sent(topic=arguments["topic"], value=_unpacked(value))
    elif action == "batch":
        for path, packed, _options in arguments["writes"]:
            if packed is None:
                yield happenings.Deleted(path=path)
            else:
                yield happenings.Wrote(path=path, value=_unpacked(packed))


def _unpacked(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return codec.unpack(value)
    except errors.BadValue:
        return value  # raw bytes of a message
