"""Requests to the simulated bus: cut into any pieces, wrong, or no requests at all."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv.testing.onewire import Code, protocol
from moat_kv.testing.onewire.answers import Bus
from moat_kv.testing.onewire.protocol import Kind, RequestParser


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    begin = 0
    for cut in sorted({min(cut, len(data)) for cut in cuts}):
        yield data[begin:cut]
        begin = cut
    yield data[begin:]


@given(
    wanted=st.lists(
        st.tuples(
            st.sampled_from(list(Kind)),
            st.text(st.characters(blacklist_characters="\0", codec="utf-8"), max_size=20),
            st.binary(max_size=20),
        ),
        max_size=5,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_requests_are_the_same_however_they_are_cut(
    wanted: list[tuple[Kind, str, bytes]], cuts: list[int]
) -> None:
    stream = b""
    for kind, path, data in wanted:
        payload = path.encode() + b"\0" + data
        stream += struct.pack("!6i", 0, len(payload), kind, 4, len(data), 0) + payload
    parser = RequestParser()
    got = [request for piece in pieces(stream, cuts) for request in parser.feed(piece)]
    assert [(one.kind, one.path, one.data) for one in got] == wanted


@given(data=st.binary(max_size=200))
def test_random_bytes_are_requests_or_a_bad_peer(data: bytes) -> None:
    parser = RequestParser()
    bus = Bus()
    bus.add("10.67C6697351FF")
    try:
        for request in parser.feed(data):
            assert bus.answer(request)
    except protocol.BadPeer:
        pass


def test_payload_over_the_limit_is_a_bad_peer() -> None:
    head = struct.pack("!6i", 0, protocol.PAYLOAD_LIMIT_BYTES + 1, 2, 0, 0, 0)
    with pytest.raises(protocol.BadPeer):
        list(RequestParser().feed(head))


def test_payload_without_end_of_path_is_a_bad_message() -> None:
    (request,) = RequestParser().feed(struct.pack("!6i", 0, 4, 2, 0, 100, 0) + b"/abc")
    (reply,) = Bus().answer(request)
    assert reply.ret == -Code.BAD_MESSAGE
