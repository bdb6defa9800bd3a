"""Sending without waiting: a second handle on the socket of a line.

A lone request saves the way through the writer task, a third of its own cost, if its caller gives
it to the system at once; so does a server's answer. Clients' and servers' connections do so only
while nothing is left in the event loop's own buffers, so the order of bytes holds.
"""

from __future__ import annotations

import os
import socket

import anyio.abc

#: Neither wait nor raise a signal; 0 where the system cannot promise both (only Linux can).
_FLAGS = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_NOSIGNAL", 0)
_USABLE = hasattr(socket, "MSG_DONTWAIT") and hasattr(socket, "MSG_NOSIGNAL")


class DirectSender:
    """A handle of its own on a connected socket; to be closed before the socket itself."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=os.dup(number))

    def send(self, data: bytes) -> int:
        """How many bytes the system took, from the start; 0 if it is full, or the line broken."""
        try:
            return self._socket.send(data, _FLAGS)
        except OSError:
            return 0

    def close(self) -> None:
        self._socket.close()


def sender_of(stream: anyio.abc.ByteStream) -> DirectSender | None:
    """A handle on a plain socket's stream; None for one that is wrapped (TLS), or no socket.

    None, too, where no more files can be opened: it goes without.
    """
    if not _USABLE or not isinstance(stream, anyio.abc.SocketStream):
        return None
    try:
        return DirectSender(stream.extra(anyio.abc.SocketAttribute.raw_socket).fileno())
    except OSError:
        return None
