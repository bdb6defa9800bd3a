"""What a client could do to a server and to others: it costs itself, and nobody else."""

from __future__ import annotations

import errno
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import msgpack
import pytest

from moat_kv import codec, errors, transport
from moat_kv.engine.base import Done
from moat_kv.engine.memory import MemoryEngine
from moat_kv.entry import Write
from moat_kv.path import P, Path
from moat_kv.proto import frames, messages
from moat_kv.proto.messages import State
from moat_kv.server import connection as connection_module
from moat_kv.server import turns
from moat_kv.server.connection import Connection
from moat_kv.testing.server import RunningServer, running_server
from tests.line import Line, connected

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


class HeldEngine(MemoryEngine):
    """Keeps what is submitted to itself, as a slow disk would."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Sequence[Write], Done]] | None = []

    def submit(self, writes: Sequence[Write], done: Done) -> None:
        if self.held is None:
            super().submit(writes, done)
        else:
            self.held.append((writes, done))

    def release(self) -> None:
        held, self.held = self.held or [], None
        for writes, done in held:
            super().submit(writes, done)


def only_connection(running: RunningServer) -> Connection:
    (found,) = running.server.connections
    return found


async def settled(number: Any) -> Any:
    """What a figure of the server stays at for a while."""
    with anyio.fail_after(10):
        seen = number()
        while True:
            await anyio.sleep(0.1)
            if (now := number()) == seen:
                return now
            seen = now


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


def requests(action: str, count: int, value: bytes | None = None, **arguments: Any) -> bytes:
    """Many requests, from seq 100."""
    return b"".join(
        messages.pack((seq, action, arguments, value)) for seq in range(100, 100 + count)
    )


async def answers(line: Line, count: int) -> None:
    for seq in range(100, 100 + count):
        assert (await line.next(seq)).state == State.REPLY


# Memory -----------------------------------------------------------------------------------------


async def test_many_reads_of_a_large_value_are_not_answered_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.ask("set", b"x" * 100_000, path=P("a"))
        stream = only_connection(running)._stream
        sent: list[int] = []
        plain = type(stream).send

        async def send(self: Any, data: bytes) -> None:
            if self is stream:
                sent.append(len(data))
            await plain(self, data)

        monkeypatch.setattr(type(stream), "send", send)
        await line.stream.send(requests("get", 1_000, path=P("a")))
        await answers(line, 1_000)
        assert max(sent) < connection_module.SEND_LOW_BYTES + 200_000


async def test_one_with_thousands_of_writes_in_flight_lets_another_one_in() -> None:
    engine = HeldEngine()
    async with (
        running_server(engine=engine) as running,
        connected(running.url) as greedy,
        connected(running.url) as modest,
    ):

        def unanswered() -> int:
            return sum(each.unanswered for each in running.server.connections)

        await greedy.stream.send(requests("set", 2_000, b"\x01", path=P("a")))
        await until(lambda: unanswered() == 2_000)
        await modest.stream.send(requests("set", 40, b"\x02", path=P("b")))
        await until(lambda: unanswered() == 2_040)
        engine.release()
        revisions = [(await modest.next(seq)).fields["rev"] for seq in range(100, 140)]
        assert revisions == sorted(revisions)
        # What the engine had already, and then a turn each.
        assert revisions[0] <= running.server.engine.inside_records + turns.TURN_RECORDS + 1
        assert revisions[-1] <= running.server.engine.inside_records + 3 * turns.TURN_RECORDS + 40
        written = [(await greedy.next(seq)).fields["rev"] for seq in range(100, 2_100)]
        assert written == sorted(written)


async def test_many_large_writes_are_not_taken_all_at_once() -> None:
    engine = HeldEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        connection = only_connection(running)
        sent = requests("set", 30, codec.pack(b"x" * (MIB - 1_000)), path=P("a"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(line.stream.send, sent)
            await until(lambda: connection.held_bytes > connection_module.HELD_LIMIT_BYTES)
            held = await settled(lambda: connection.held_bytes)
            assert held < connection_module.HELD_LIMIT_BYTES + MIB
            engine.release()
            await answers(line, 30)
        assert connection.held_bytes == 0


async def test_tasks_of_one_client_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    go = anyio.Event()

    class SlowHistory(MemoryEngine):
        running_now = 0

        async def history(self, path: Path, **options: Any) -> list[Any]:
            self.running_now += 1
            await go.wait()
            return await super().history(path, **options)

    engine = SlowHistory()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        most = connection_module.HELD_LIMIT_BYTES // connection_module.WORK_BYTES
        await line.stream.send(requests("history", 2 * most, path=P("a")))
        assert 0 < await settled(lambda: engine.running_now) <= most + 1
        go.set()
        for seq in range(100, 100 + 2 * most):
            assert (await line.next(seq)).state == State.START


async def test_a_client_that_goes_while_its_reader_waits_for_room_leaves_nothing() -> None:
    async with running_server() as running:
        async with connected(running.url) as line:
            await line.ask("set", b"x" * 500_000, path=P("a"))
            await line.ask("set", b"x" * 500_000, path=P("b"))
            # The writer is in the middle of a long answer, and the reader has too much to add.
            await line.stream.send(requests("get_tree", 200, path=P(":")))
            await anyio.sleep(0.1)
            await line.stream.send(requests("get", 200, path=P("a")))
            await settled(lambda: only_connection(running)._out_bytes)
        await until(lambda: not running.server.connections)


async def test_a_watchs_part_is_small_enough_to_be_read() -> None:
    async with running_server() as running:
        async with connected(running.url) as slow, connected(running.url) as writer:
            seq = await slow.send("watch", path=P("a"))
            for n in range(40):
                await writer.ask("set", b"x" * (MIB - 1_000), path=Path("a", n))
            seen: set[Any] = set()
            while len(seen) < 40:
                part = await slow.next(seq)
                rows = part.fields.get("rows", ())
                assert sum(len(row[1]) for row in rows) < 2 * MIB
                seen.update(row[0] for row in rows)


async def test_a_slow_monitor_loses_the_oldest_by_size_too() -> None:
    async with running_server() as running:
        async with connected(running.url) as slow, connected(running.url) as sender:
            seq = await slow.send("monitor", topic=P("t"))
            assert (await slow.next(seq)).state == State.START
            for n in range(60):
                await sender.ask("send", [n, b"x" * 900_000], topic=P("t"))
            (stream,) = (s for c in running.server.connections for s in c._streams.values())
            assert stream._size_bytes < 3 * MIB  # type: ignore[attr-defined]
            lost = seen = 0
            while lost + seen < 60:
                part = await slow.next(seq)
                lost += part.fields.get("lost", 0)
                seen += part.value is not None
            assert lost > 40


async def test_a_monitor_keeps_to_its_depth() -> None:
    async with running_server() as running, connected(running.url) as line:
        seq = await line.send("monitor", topic=P("t"), max_depth=1)
        await line.next(seq)
        for topic in ("t.a.b", "t.a"):
            await line.ask("send", topic, topic=P(topic))
        assert (await line.next(seq)).fields == {"topic": P("t.a")}


async def test_sessions_of_a_line_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moat_kv.server.sessions.LINE_LIMIT", 3)
    async with running_server() as running, connected(running.url) as line:
        for _ in range(3):
            await line.ask("session_open")
        with pytest.raises(errors.BadArguments, match="more than 3 sessions"):
            await line.ask("session_open")


async def test_who_only_connects_is_asked_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "FIRST_REQUEST_S", 0.2)
    async with running_server() as running, connected(running.url) as speaking:
        await speaking.ask("ping")
        async with connected(running.url) as silent, connected(running.url) as slow:
            # Half a frame is no request either.
            await slow.stream.send(messages.pack((1, "ping", {}, None))[:-1])
            for line in (silent, slow):
                error = await line.next(0)
                assert error.fields["error"] == "ProtocolError"
                assert error.fields["facts"] == {"reason": "no request within 0.2 s"}
            await until(lambda: len(running.server.connections) == 1)
        # Who has spoken may be silent for as long as he likes.
        await anyio.sleep(0.3)
        await speaking.ask("ping")


# Time -------------------------------------------------------------------------------------------


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


# Order ------------------------------------------------------------------------------------------


async def test_a_deletion_of_a_subtree_keeps_its_place_among_the_writes() -> None:
    async with running_server() as running, connected(running.url) as line:
        before = [await line.send("set", n, path=Path("a", n)) for n in range(50)]
        tree = await line.send("delete_tree", path=P("a"))
        after = [await line.send("set", "new", path=Path("a", n)) for n in (7, 100)]
        for seq in (*before, *after):
            assert (await line.next(seq)).state == State.REPLY
        reply = await line.next(tree)
        # One that was written over before its turn came is not deleted any more.
        assert reply.fields["count"] in (49, 50)
        rows = await line.rows("get_tree", path=P("a"))
        assert sorted((row[0][0], codec.unpack(row[1])) for row in rows) == [
            (7, "new"),
            (100, "new"),
        ]


async def test_a_resumed_watch_starts_anew_if_deletions_are_dropped_on_the_way() -> None:
    engine = MemoryEngine(tombstone_s=0)
    async with running_server(engine=engine) as running, connected(running.url) as line:
        for start in range(0, 9_000, 1_000):
            writes = [[Path("a", start + n), b"\xc0", {}] for n in range(1_000)]
            await line.ask("batch", writes=writes)
        mark = [engine.epoch, engine.revision]
        await line.ask("delete", path=Path("a", 8_999))
        seq = await line.send("watch", path=P("a"), since=mark)
        while not running.server.store.watchers.count:
            await anyio.lowlevel.checkpoint()
        await engine.compact()
        gone = reset = False
        while True:
            part = await line.next(seq)
            reset |= "reset" in part.fields
            gone |= any(row[1] is None for row in part.fields.get("rows", ()))
            if part.fields.get("ready"):
                break
        # Either it was told of the deletion, or that it has to begin from nothing.
        assert gone or reset


# Patches ----------------------------------------------------------------------------------------


async def test_a_patch_cannot_make_a_value_larger_than_any_write_could() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.ask("set", [b"x" * 600_000], path=P("a"))
        with pytest.raises(errors.CannotPatch, match="would have 12"):
            await line.ask("patch", b"x" * 600_000, path=P("a"), op="append")
        assert len((await line.ask("get", path=P("a"))).value or b"") < MIB


async def test_numbers_that_do_not_go_together_harm_nobody_else() -> None:
    engine = HeldEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        # It is tried when nothing is there, and again when somebody's integer is.
        number = await line.send("set", 10**400, path=P("a"))
        patch = await line.send("patch", 1.5, path=P("a"), op="add")
        await until(lambda: len(engine.held or ()) == 2)
        engine.release()
        assert (await line.next(number)).state == State.REPLY
        assert (await line.next(patch)).fields["error"] == "CannotPatch"
        await line.ask("set", 1, path=P("a"))


async def test_any_number_of_patches_of_one_path_all_count() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.stream.send(requests("patch", 3_000, b"\x01", path=P("n"), op="add"))
        await answers(line, 3_000)
        assert (await line.ask("get", path=P("n"))).value == codec.pack(3_000)
        assert not running.server.patches._waiting


async def test_a_server_can_stop_in_the_middle_of_patches_and_endings() -> None:
    engine = HeldEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        await line.send("set", 1, path=P("mine"), session=id)
        await line.send("session_close", session=id)
        await line.stream.send(requests("patch", 50, b"\x01", path=P("n"), op="add"))
        await until(lambda: len(engine.held or ()) >= 4)
        # Everything is answered while the server is on its way out.
        engine.release()
    assert running.server.stopping


# What stays behind ------------------------------------------------------------------------------


async def test_an_entry_whose_time_is_over_goes_when_the_disk_has_room_again() -> None:
    engine = MemoryEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        await line.ask("set", 1, path=P("a"), ttl_s=0.2)
        engine.trouble = "no room"
        await anyio.sleep(0.4)
        assert (await line.ask("get", path=P("a"))).value is not None
        engine.trouble = None
        await until(lambda: running.server.store.tree.entries == 0)


async def test_an_entry_that_is_renewed_all_the_time_costs_no_more_for_it() -> None:
    async with running_server() as running, connected(running.url) as line:
        for _ in range(3):
            sent = requests("set", 1_000, b"\x01", path=P("a"), ttl_s=1_000.0)
            await line.stream.send(sent)
            await answers(line, 1_000)
        assert len(running.server.expiry._due) < 1_500


async def test_a_sessions_entries_go_when_the_disk_has_room_again() -> None:
    class HalfFull(MemoryEngine):
        """Has no room for the deletion of an entry, but for that of a session's record."""

        full = False

        def submit(self, writes: Sequence[Write], done: Done) -> None:
            if self.full and writes[0].path == P("mine"):
                done(errors.StorageFailed("memory", "no room"))
            else:
                super().submit(writes, done)

    engine = HalfFull()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        await line.ask("set", 1, path=P("mine"), session=id)
        engine.full = True
        await line.ask("session_close", session=id)
        await until(lambda: running.server.sessions._unswept)
        engine.full = False
        await until(lambda: running.server.store.tree.entries == 0)


async def test_a_membership_goes_with_its_session_and_leaves_nothing() -> None:
    async with running_server() as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        for group in ("g", "h"):
            for role in ("x", "y"):
                await line.ask("group_join", group=P(group), name="n", role=role, session=id)
        await line.ask("group_leave", group=P("g"), name="n", role="x")
        await line.ask("session_close", session=id)
        assert not running.server.groups._groups
        assert not running.server.groups._joined


@asynccontextmanager
async def a_member(line: Line) -> AsyncIterator[dict[str, Any]]:
    yield {"session": (await line.ask("session_open")).fields["session"], "group": P("g")}


async def test_a_members_info_is_bounded_in_depth_and_size() -> None:
    deep: Any = 1
    for _ in range(codec.MAX_DEPTH):
        deep = [deep]
    async with running_server() as running, connected(running.url) as line:
        watch = await line.send("group_watch", group=P("g"))
        async with a_member(line) as member:
            with pytest.raises(errors.BadValue, match="deeper than 63"):
                await line.ask("group_join", deep, name="n", **member)
            await line.ask("group_join", deep[0], name="n", **member)
            with pytest.raises(errors.BadArguments, match="at most"):
                await line.ask("group_join", "x" * 20_000, name="m", **member)
            with pytest.raises(errors.BadArguments, match="role has 1 to 200"):
                await line.ask("group_join", 1, name="m", role="x" * 201, **member)
        while not (part := await line.next(watch)).fields.get("members"):
            pass
        assert codec.unpack(part.value or b"") == {"n": deep[0]}


async def test_a_group_stays_small_enough_for_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moat_kv.server.groups.GROUP_BYTES", 10_000)
    async with running_server() as running, connected(running.url) as line:
        async with a_member(line) as member:
            await line.ask("group_join", "x" * 9_000, name="m", **member)
            with pytest.raises(errors.BadArguments, match="too many members"):
                await line.ask("group_join", "x" * 9_000, name="n", **member)
            await line.ask("group_join", "y" * 9_500, name="m", **member)  # its own, changed


async def test_a_write_whose_sessions_record_has_no_room_does_not_say_that_it_ended() -> None:
    class NoRecord(MemoryEngine):
        def submit(self, writes: Sequence[Write], done: Done) -> None:
            if writes[0].path.keys[0] != "mine":
                done(errors.StorageFailed("memory", "no room"))
            else:
                super().submit(writes, done)

    async with running_server(engine=NoRecord()) as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        with pytest.raises(errors.StorageFailed):
            await line.ask("set", 1, path=P("mine"), session=id)
        await line.ask("session_ping", session=id)


# History ----------------------------------------------------------------------------------------


async def test_a_revision_that_no_engine_knows_is_refused() -> None:
    async with running_server() as running, connected(running.url) as line:
        for before in (2**63, 2**64 - 1, -1):
            with pytest.raises(errors.BadArguments, match="before is a revision"):
                await line.rows("history", path=P("a"), before=before)
        await line.ask("ping")


async def test_a_long_history_comes_whole_and_in_portions() -> None:
    engine = MemoryEngine(history=100)
    async with running_server(engine=engine) as running, connected(running.url) as line:
        for n in range(100):
            await line.ask("set", n, path=P("a"))
        for limit, first in ((100, 99), (37, 99), (16, 99), (1, 99)):
            rows = await line.rows("history", path=P("a"), limit=limit)
            assert [codec.unpack(row[1]) for row in rows] == [first - n for n in range(limit)]
        assert await line.rows("history", path=P("b")) == []


async def test_a_history_may_be_stopped_while_it_is_read() -> None:
    go = anyio.Event()

    class Slow(MemoryEngine):
        async def history(self, path: Path, **options: Any) -> list[Any]:
            await go.wait()
            return await super().history(path, **options)

    async with running_server(engine=Slow()) as running, connected(running.url) as line:
        await line.ask("set", 1, path=P("a"))
        seq = await line.send("history", path=P("a"))
        assert (await line.next(seq)).state == State.START
        await line.ask("stop", seq=seq)
        assert (await line.next(seq)).state == State.END
        connection = only_connection(running)
        go.set()
        await until(lambda: connection.unanswered == 0)
        await line.ask("ping")


async def test_a_history_that_fails_ends_with_that_error() -> None:
    class Damaged(MemoryEngine):
        async def history(self, path: Path, **options: Any) -> list[Any]:
            raise errors.StorageDamaged("file", "torn")

    async with running_server(engine=Damaged()) as running, connected(running.url) as line:
        with pytest.raises(errors.StorageDamaged):
            await line.rows("history", path=P("a"))
        assert not only_connection(running)._streams


# Connections ------------------------------------------------------------------------------------


async def test_a_connection_too_many_is_told_so_and_the_others_go_on() -> None:
    async with running_server() as running:
        running.server.connection_limit = 2
        async with connected(running.url) as one, connected(running.url) as two:
            stream = await anyio.connect_unix(running.url.removeprefix("unix://"))
            async with stream:
                late = Line(stream)
                with anyio.fail_after(5):
                    reply = await late.next(0)
                assert reply.state == State.ERROR
                assert "2 connections" in reply.fields["facts"]["reason"]
            await one.ask("ping")
            await two.ask("ping")
        await until(lambda: not running.server.connections)
        async with connected(running.url) as line:
            await line.ask("ping")


async def test_an_accept_that_fails_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transport.accept
    failures = 0

    async def accept(listener: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 3:
            raise OSError(errno.EMFILE if failures == 1 else errno.ECONNABORTED, "no")
        return await plain(listener)

    async with running_server(tcp=True) as running, connected(running.url) as line:
        # The one that waits already is the plain one; the next three are not.
        monkeypatch.setattr(transport, "accept", accept)
        for _ in range(2):
            async with connected(running.url) as late:
                await late.ask("ping")
        await line.ask("ping")
        assert failures > 3


async def test_clients_that_are_gone_at_once_harm_nobody() -> None:
    async with running_server() as running, connected(running.url) as line:
        for _ in range(50):
            stream = await anyio.connect_unix(running.url.removeprefix("unix://"))
            await anyio.aclose_forcefully(stream)
        await line.ask("ping")
        await until(lambda: len(running.server.connections) == 1)


async def test_what_a_client_sends_ahead_stays_in_the_sockets() -> None:
    """Also from the first moment on, and while its requests wait for the engine."""
    engine = HeldEngine()
    async with running_server(engine=engine, tcp=True) as running:
        host, _, port = running.url.removeprefix("tcp://").rpartition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            value = codec.pack(b"x" * 100_000)
            sent = 0
            with anyio.move_on_after(1):
                while True:
                    await stream.send(messages.pack((1, "set", {"path": P("a")}, value)))
                    sent += len(value)
            # What is not held by the server is in the buffers of sockets and of this stream.
            connection = only_connection(running)
            taken = connection.held_bytes + len(connection._frames._buffer)
            chunks = getattr(connection._stream, "_protocol", None)
            if chunks is not None:
                taken += sum(len(chunk) for chunk in chunks.chunks)
            assert taken < connection_module.HELD_LIMIT_BYTES + 2 * MIB
            assert sent < 40 * MIB
            engine.release()
