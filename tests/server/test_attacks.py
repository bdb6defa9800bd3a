"""What a client could make a server keep for it: it is bounded, and costs nobody else."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from moat_kv import codec, errors
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import P, Path
from moat_kv.proto import messages
from moat_kv.proto.messages import State
from moat_kv.server import connection as connection_module
from moat_kv.server import turns
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.line import connected
from tests.server.attacking import MIB, HeldEngine, answers, only_connection, requests, settled

pytestmark = pytest.mark.anyio


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
        await until(lambda: engine.running_now)
        assert await settled(lambda: engine.running_now) <= most + 1
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
    async with running_server() as running, connected(running.url) as speaking:
        await speaking.ask("ping")
        # From now on, so that a busy machine makes nobody late who did speak.
        monkeypatch.setattr(connection_module, "FIRST_REQUEST_S", 0.2)
        async with connected(running.url) as silent, connected(running.url) as slow:
            # Half a frame is no request either.
            with contextlib.suppress(anyio.BrokenResourceError):  # it was asked to leave already
                await slow.stream.send(messages.pack((1, "ping", {}, None))[:-1])
            for line in (silent, slow):
                error = await line.next(0)
                assert error.fields["error"] == "ProtocolError"
                assert error.fields["facts"] == {"reason": "no request within 0.2 s"}
            await until(lambda: len(running.server.connections) == 1)
        # Who has spoken may be silent for as long as he likes.
        await anyio.sleep(0.3)
        await speaking.ask("ping")
