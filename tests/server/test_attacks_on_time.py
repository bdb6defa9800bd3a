"""A client that makes much work: others wait for none of it."""

from __future__ import annotations

import time

import msgpack
import pytest

from moat_kv import codec, errors
from moat_kv.path import P, Path
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State
from moat_kv.server import connection as connection_module
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.line import connected
from tests.server.attacking import MIB, only_connection, requests

pytestmark = pytest.mark.anyio


def test_a_frame_in_tiny_pieces_is_not_copied_each_time() -> None:
    reader = frames.FrameReader()
    data = frames.frame(bytes(MIB))
    began = time.process_time()
    found = [one for at in range(0, len(data), 64) for one in reader.feed(data[at : at + 64])]
    assert found == [bytes(MIB)]
    assert time.process_time() - began < 0.5  # it took 3 s


def colliding_keys(count: int) -> bytes:
    """A mapping whose keys are big integers that all hash to 0."""
    parts = [msgpack.Packer().pack_map_header(count)]
    for factor in range(2**20, 2**20 + count):
        number = (2**61 - 1) * 8 * factor
        parts.append(codec.pack(number) + b"\xc0")
    return b"".join(parts)


async def test_a_mapping_whose_keys_collide_is_refused_at_once() -> None:
    async with running_server() as running, connected(running.url) as line:
        value = colliding_keys(50_000)
        assert len(value) < MIB
        began = time.process_time()
        await line.stream.send(messages.pack((9, "set", {"path": P("a")}, value)))
        assert (await line.next(9)).fields["error"] == "BadValue"
        assert time.process_time() - began < 1


def test_mappings_of_ordinary_keys_may_be_large() -> None:
    for keys in (
        [str(n) for n in range(50_000)],
        list(range(10_000)),
        [bytes([n % 256, n // 256]) for n in range(50_000)],
    ):
        codec.check(codec.pack([dict.fromkeys(keys), {"a": [{}]}]))
    with pytest.raises(errors.BadValue, match="numbers as keys"):
        codec.check(codec.pack(dict.fromkeys(range(10001))))
    with pytest.raises(errors.BadValue, match="an array or a mapping"):
        codec.check(b"\x92\x81\x80\xc0" + codec.pack("x" * 20_000))


async def test_a_union_of_large_lists_takes_no_hours() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.ask("set", list(range(50_000)), path=P("a"))
        await line.ask("patch", list(range(40_000, 90_000)), path=P("a"), op="union")
        united = codec.unpack((await line.ask("get", path=P("a"))).value or b"")
        assert united == list(range(90_000))


async def test_long_answers_come_in_steps_of_bounded_work() -> None:
    async with running_server() as running, connected(running.url) as line:
        for start in range(0, 12_000, 1_000):
            writes = [[Path("a", "b", start + n), b"\xc0", {}] for n in range(1_000)]
            await line.ask("batch", writes=writes)
        connection = only_connection(running)
        pulls = 0
        plain = connection._pull

        def pull() -> None:
            nonlocal pulls
            pulls += 1
            plain()

        connection._pull = pull  # type: ignore[method-assign]
        assert await line.rows("list", path=P("a")) == [[Path("b"), False, 12_000]]
        assert pulls > 5
        pulls = 0
        assert await line.rows("get_tree", path=P("a"), min_depth=3) == []
        assert pulls > 5


async def test_few_long_answers_of_a_line_are_walking_at_a_time() -> None:
    async with running_server() as running, connected(running.url) as line:
        for start in range(0, 4_000, 1_000):
            writes = [[Path("a", start + n), b"\xc0", {}] for n in range(1_000)]
            await line.ask("batch", writes=writes)
        connection = only_connection(running)
        most = 0
        plain = connection._pull

        def pull() -> None:
            nonlocal most
            plain()
            most = max(most, len(connection._walkers))

        connection._pull = pull  # type: ignore[method-assign]
        kinds = ("get_tree", "list", "watch")
        sent = b"".join(
            messages.pack((100 + n, kinds[n % 3], {"path": P("a")}, None)) for n in range(60)
        )
        await line.stream.send(sent)
        stopped = await line.send("stop", seq=100 + 57)
        for n in range(60):
            while (await line.next(100 + n)).state != State.END:
                if kinds[n % 3] == "watch":
                    break
        assert (await line.next(stopped)).state == State.REPLY
        assert 1 < most <= connection_module.WALK_LIMIT
        await until(lambda: not connection._walkers and not connection._parked)


async def test_many_watches_of_a_line_may_have_less_waiting_each() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.stream.send(requests("watch", 200, path=P("a")))
        await until(lambda: running.server.store.watchers.count == 200)
        watchers = running.server.store.watchers._root.branches["a"].watchers
        limits = [watcher.limit for watcher in watchers]
        assert limits[0] == 20_000
        assert limits[-1] == 2_000
        assert sum(limits) < 2_000_000
