"""Frames that are not as they should be: named errors, bounded memory, others undisturbed."""

from __future__ import annotations

import contextlib
import struct

import anyio
import hypothesis
import msgpack
import pytest
from hypothesis import strategies

from moat_kv import errors
from moat_kv.path import P
from moat_kv.proto import frames, messages
from moat_kv.testing.server import running_server
from tests.line import connected

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("body", "error", "seq"),
    [
        pytest.param(b"", "BadFrame", 0, id="empty"),
        pytest.param(b"\xc1", "BadFrame", 0, id="not-msgpack"),
        pytest.param(msgpack.packb([7, "get", {}]), "BadFrame", 7, id="three"),
        pytest.param(msgpack.packb([7, "get", {}, None]) + b"\x01", "BadFrame", 7, id="trailing"),
        pytest.param(msgpack.packb([7, "get", {}, None])[:-1], "BadFrame", 7, id="truncated"),
        pytest.param(msgpack.packb([7, 5, {}, None]), "BadFrame", 7, id="action-type"),
        pytest.param(msgpack.packb([7, "get", 5, None]), "BadFrame", 7, id="arguments-type"),
        pytest.param(msgpack.packb([7, "get", {1: 2}, None]), "BadFrame", 7, id="argument-key"),
        pytest.param(msgpack.packb([7, "get", {}, 5]), "BadFrame", 7, id="value-type"),
        pytest.param(msgpack.packb([-7, "get", {}, None]), "BadFrame", 0, id="negative-seq"),
        pytest.param(msgpack.packb([True, "get", {}, None]), "BadFrame", 0, id="true-seq"),
        pytest.param(
            msgpack.packb([7, "get", {"path": msgpack.ExtType(9, b"x")}, None]),
            "BadFrame",
            7,
            id="extension",
        ),
        pytest.param(
            msgpack.packb([7, "get", {"path": msgpack.ExtType(3, b"\xc1")}, None]),
            "BadPath",
            7,
            id="path",
        ),
        pytest.param(b"\x94\x07" + b"\x91" * 2_000 + b"\xc0", "BadFrame", 7, id="deep"),
        pytest.param(
            b"\x94\x07\xa3set\x81\xa4path\xc7\x02\x03\xa1a" + b"\xc4\x62" + b"\x91" * 97 + b"\xc0",
            "BadValue",
            7,
            id="deep-value",
        ),
    ],
)
async def test_a_bad_frame_gets_a_named_error_and_the_line_lives(
    body: bytes, error: str, seq: int
) -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.stream.send(frames.frame(body))
        reply = await line.next(seq)
        assert reply.fields["error"] == error
        assert (await line.ask("ping")).fields["revision"] == 0


async def test_an_oversized_frame_is_skipped_and_answered() -> None:
    async with running_server() as running, connected(running.url) as line:
        value = "x" * (2 * 1024 * 1024)
        with pytest.raises(errors.FrameTooLarge) as caught:
            await line.ask("set", value, path=P("a"))
        assert caught.value.limit_bytes == 1024 * 1024
        assert (await line.ask("get", path=P("a"))).value is None


async def test_a_length_beyond_reason_ends_the_line_with_a_word() -> None:
    async with running_server() as running:
        async with connected(running.url) as line, connected(running.url) as other:
            await line.stream.send(b"GET / HTTP/1.1\r\n\r\n")
            assert (await line.next(0)).fields["error"] == "FrameTooLarge"
            with pytest.raises(anyio.EndOfStream):
                await line.stream.receive()
            await other.ask("ping")


frames_of_any_kind = strategies.one_of(
    strategies.binary(max_size=200),
    strategies.binary(max_size=100).map(frames.frame),
    strategies.tuples(
        strategies.integers(-2, 9),
        strategies.sampled_from(["get", "set", "watch", "batch", "stop", "list", "session_open"]),
        strategies.dictionaries(
            strategies.sampled_from(["path", "seq", "writes", "since", "guard", "fetch", "ttl_s"]),
            strategies.one_of(
                strategies.just(P("a.b")),
                strategies.integers(-5, 5),
                strategies.lists(strategies.one_of(strategies.none(), strategies.just(P("a")))),
                strategies.text(max_size=5),
            ),
        ),
        strategies.one_of(strategies.none(), strategies.binary(max_size=20)),
    ).map(messages.pack),
)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(sent=strategies.lists(frames_of_any_kind, max_size=8))
def test_nothing_that_is_sent_disturbs_others(anyio_backend: str, sent: list[bytes]) -> None:
    async def check() -> None:
        async with running_server() as running, connected(running.url) as other:
            async with connected(running.url) as line:
                broken = anyio.BrokenResourceError, anyio.EndOfStream
                with anyio.move_on_after(0.02), contextlib.suppress(*broken):
                    for data in sent:
                        await line.stream.send(data)
                    await line.stream.receive()
            with anyio.fail_after(30):
                await other.ask("set", 1, path=P("other"))

    anyio.run(check, backend=anyio_backend)


@hypothesis.given(
    bodies=strategies.lists(strategies.binary(max_size=60), max_size=12),
    cuts=strategies.lists(strategies.integers(1, 40), min_size=1),
)
def test_frames_do_not_depend_on_how_the_stream_is_cut(
    bodies: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(frames.frame(body) for body in bodies)
    reader = frames.FrameReader(limit=40)
    seen: list[bytes | None] = []
    place = turn = 0
    while place < len(data):
        size = cuts[turn % len(cuts)]
        turn += 1
        for one in reader.feed(data[place : place + size]):
            seen.append(one if isinstance(one, bytes) else None)
        place += size
    assert seen == [body if len(body) <= 40 else None for body in bodies]


@pytest.mark.parametrize("seq", [1, 300, 2**40])
def test_the_seq_of_an_oversized_frame_is_found(seq: int) -> None:
    body = msgpack.packb([seq, "set", {}, b"x" * 100])
    assert messages.peek_seq(body[: frames.HEAD_BYTES]) == seq
    assert messages.peek_seq(struct.pack(">I", 3)) == 0
