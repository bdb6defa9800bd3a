"""Which replies leave a connection at once, and which with others. No socket here."""

from __future__ import annotations

from typing import Any, cast

import pytest

from moat_kv.server import connection as connection_module

pytestmark = pytest.mark.anyio


class Server:
    frame_limit = 1 << 20


class Socket:
    """Takes so many bytes of what it is given."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.taken.append(data[: self.room])
        return len(self.taken[-1])


def opened(room: int) -> tuple[connection_module.Connection, Socket]:
    socket = Socket(room)
    made = connection_module.Connection(cast(Any, Server()), cast(Any, None))
    made._direct = cast(Any, socket)
    return made, socket


async def test_a_lone_reply_leaves_at_once() -> None:
    connection, socket = opened(room=100)
    connection.send(b"abcdef")
    assert (socket.taken, connection._out) == ([b"abcdef"], [])


async def test_what_the_socket_does_not_take_is_before_what_follows() -> None:
    connection, socket = opened(room=2)
    connection.send(b"abcdef")
    connection.send(b"gh")
    assert (socket.taken, connection._out) == ([b"ab"], [b"cdef", b"gh"])


async def test_a_reply_that_others_follow_leaves_with_them() -> None:
    connection, socket = opened(room=100)
    connection.hold(10)
    connection.send(b"abcdef")
    connection.answered(10)
    connection.send(b"gh")
    assert (socket.taken, connection._out) == ([], [b"abcdef", b"gh"])
