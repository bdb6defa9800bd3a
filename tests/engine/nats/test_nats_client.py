"""Messages out of the bytes that a line gives, and into the bytes that it takes. No NATS here."""

from __future__ import annotations

import types
from typing import Any

import pytest
from nats import errors as nats_errors

from moat_kv.engine import nats_client, nats_consumer, nats_subjects

pytestmark = pytest.mark.anyio

HEAD = b"NATS/1.0\r\nA: 1\r\n\r\n"
BIG = b"x" * 5_000
BYTES = (
    b"MSG moat.a 1 3\r\nabc\r\n"
    b"PING\r\n"
    b"MSG moat.b 1 reply.to 0\r\n\r\n"
    b"HMSG moat.c 1 %d %d\r\n%b1\r\n2\r\n"
    % (len(HEAD), len(HEAD) + 4, HEAD)
    + b"+OK\r\n"
    + b"HMSG moat.d 1 reply.to %d %d\r\n%b\r\n" % (len(HEAD), len(HEAD), HEAD)
    + b"MSG moat.e 1 %d\r\n%b\r\n" % (len(BIG), BIG)
    + b'INFO {"max_payload":1}\r\n'
)
MESSAGES = [
    (b"moat.a", b"", b"abc", None),
    (b"moat.b", b"reply.to", b"", None),
    (b"moat.c", b"", b"1\r\n2", HEAD),
    (b"moat.d", b"reply.to", b"", HEAD),
    (b"moat.e", b"", BIG, None),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # nats-py knows no other


class Listening(nats_client.Client):
    """A client without a line that writes down what it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.pings = self.infos = self.pieces = 0
        self._listeners[1] = lambda *message: self.seen.append(message)
        self.rests.append(self._rested)

    def _rested(self) -> None:
        self.pieces += 1

    @property
    def is_connected(self) -> bool:
        return True

    async def _process_ping(self) -> None:
        self.pings += 1

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.infos += 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 4_096, 100_000])
async def test_messages_come_whole_however_the_bytes_are_cut(size: int) -> None:
    client = Listening()
    pieces = [BYTES[start : start + size] for start in range(0, len(BYTES), size)]
    for piece in pieces:
        await client._ps.parse(piece)
    assert client.seen == MESSAGES
    assert (client.pings, client.infos) == (1, 1)
    assert 1 <= client.pieces <= len(pieces)


@pytest.mark.parametrize("turn", [1, 2, 3, 1_000_000])
@pytest.mark.parametrize("size", [1, 7, 21, 27, 64, 4_096, 100_000])
async def test_what_is_handed_on_at_once_does_not_overtake_what_is_left(
    size: int, turn: int
) -> None:
    client = Listening()
    left: list[bytes] = []
    pieces = [BYTES[start : start + size] for start in range(0, len(BYTES), size)]
    for number, piece in enumerate(pieces):
        client._came_in(left.append, piece)
        if number % turn == 0 and left:
            await client._ps.parse(b"".join(left))
            left.clear()
    await client._ps.parse(b"".join(left))
    assert client.seen == MESSAGES
    assert (client.pings, client.infos) == (1, 1)
    client._came_in(left.append, BYTES[:21])
    assert client.seen == [*MESSAGES, MESSAGES[0]]  # at once, as nothing is left


@pytest.mark.parametrize("line", [b"MSG moat.a x 3\r\n", b"MSG moat.a\r\n"])
async def test_a_bad_line_is_left_to_who_ends_the_connection(line: bytes) -> None:
    client, left = Listening(), list[bytes]()
    client._came_in(left.append, line)
    assert left == [line]


@pytest.mark.parametrize(
    "line", [b"MSG moat.a x 3\r\n", b"MSG moat.a\r\n", b"HMSG moat.a 1 b 2\r\n", b"WHAT\r\n"]
)
async def test_a_line_that_is_none_of_the_protocol_is_an_error(line: bytes) -> None:
    with pytest.raises(nats_errors.ProtocolError):
        await Listening()._ps.parse(line)


async def test_what_a_listener_raises_does_not_end_the_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Listening()

    def fail(subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        raise ValueError("no such thing")

    client._listeners[1] = fail
    await client._ps.parse(BYTES)
    assert client.pings == 1
    assert "no such thing" in caplog.text


@pytest.mark.parametrize(("size", "left"), [(30, 2), (32_768, 0)], ids=["little", "much"])
async def test_an_answer_to_a_ping_may_be_behind_much_that_comes(size: int, left: int) -> None:
    client = Listening()
    client._pings_outstanding = 2
    await client._ps.parse(b"MSG moat.a 1 40000\r\n".ljust(size, b"x"))
    assert client._pings_outstanding == left


async def test_nothing_is_sent_without_a_line() -> None:
    with pytest.raises(nats_errors.ConnectionClosedError):
        nats_client.Client().send(b"PING\r\n")


class ClosedTransport:
    """As uvloop's is."""

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation on it; the handler is closed")

    writelines = write


class Closed(Listening):
    """A client that does not know yet that its line is closed."""

    is_connected = True

    def __init__(self) -> None:
        super().__init__()
        self._transport: Any = ClosedTransport()


@pytest.mark.parametrize("pending", [[], [b"before"]], ids=["alone", "behind nats-py's"])
async def test_a_line_that_has_just_been_closed_is_a_lost_connection(pending: list[bytes]) -> None:
    client = Closed()
    client._pending = pending
    with pytest.raises(nats_errors.ConnectionClosedError):
        client.send(b"PING\r\n")


async def test_a_consumer_that_cannot_be_answered_is_over_and_harms_nobody() -> None:
    connection: Any = types.SimpleNamespace(client=Closed())
    consumer = nats_consumer.Consumer(
        connection, nats_subjects.Names("x"), lambda items, remaining: None
    )
    consumer._came(b"inbox", b"are.you.there", b"", b"NATS/1.0 100 FlowControl Request\r\n\r\n")
    await consumer.until_over()


def test_a_message_is_published_as_the_protocol_says() -> None:
    plain = nats_client.publication("moat.a", b"abc", "_INBOX.1")
    assert plain == b"PUB moat.a _INBOX.1 3\r\nabc\r\n"
    assert nats_client.publication("moat.a", b"", "").split() == [b"PUB", b"moat.a", b"0"]
    headed = nats_client.publication("moat.a", b"abc", "", "A: 1\r\n")
    assert headed == b"HPUB moat.a  18 21\r\n" + HEAD + b"abc\r\n"
    assert len(HEAD) == 18


def test_the_status_of_a_message_is_among_its_headers() -> None:
    raw = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nB:2 \r\n\r\n"
    found = nats_client.headers_of(raw)
    assert found == {"Status": "100", "Nats-Last-Consumer": "1016", "B": "2"}
    assert nats_client.headers_of(b"NATS/1.0 503\r\n\r\n") == {"Status": "503"}
    assert nats_client.headers_of(HEAD) == {"A": "1"}
    assert nats_client.headers_of(None) == {}
