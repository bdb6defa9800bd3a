"""Several servers on one network: one order, one winner, the same trees, forgotten deletions."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import nats as nats_py
import pytest

from moat_kv import config, errors
from moat_kv.engine import nats, nats_stream
from moat_kv.entry import EXISTS, Guard, Record, Write
from moat_kv.path import P, Path
from moat_kv.testing import engine_probe
from moat_kv.testing import nats as nats_servers
from tests.client.waiting import until

pytestmark = pytest.mark.anyio

A, B, C = P("a"), P("b"), P("c")


class Server:
    """An engine with its replica and a writer of its own origin."""

    def __init__(self, engine: nats.NatsEngine, name: str) -> None:
        self.engine = engine
        self.replica = engine_probe.DictReplica()
        self.name = name
        self.tick = 0

    def make(self, path: Path, value: bytes | None, **options: object) -> Write:
        self.tick += 1
        return Write(path, value, origin=self.name, tick=self.tick, **options)  # type: ignore[arg-type]

    async def group(self, *writes: Write) -> list[Record] | errors.MoatKvError:
        answers = engine_probe.Answers(1)
        self.engine.submit(writes, answers.done(0))
        await answers.wait()
        outcome = answers.outcomes[0][1]
        return outcome if isinstance(outcome, errors.MoatKvError) else list(outcome)

    async def set(self, path: Path, value: bytes | None, **options: object) -> Record:
        outcome = await self.group(self.make(path, value, **options))
        if isinstance(outcome, errors.MoatKvError):
            raise outcome
        return outcome[0]


@asynccontextmanager
async def servers(
    url: str, count: int = 2, *, history: int = 10, tombstone_s: float = 3600.0
) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            access = config.NatsConfig(history=history)
            engine = nats.NatsEngine(url, access=access, tombstone_s=tombstone_s)
            server = Server(engine, f"n{number}:1")
            await stack.enter_async_context(engine.running(server.replica))
            found.append(server)
        yield found


async def compacted(server: Server, floor: int) -> None:
    """Have it forget all deletions, as soon as it is sure that their time is over."""
    with anyio.fail_after(30):
        while await server.engine.compact() != floor:
            await anyio.sleep(0.02)
    assert server.engine.floor == floor


async def until_equal(found: list[Server]) -> None:
    await until(lambda: all(each.replica.heads == found[0].replica.heads for each in found))


async def test_of_compare_and_sets_from_all_servers_one_wins(url: str) -> None:
    async with servers(url, 3) as found:
        outcomes: list[list[Record] | errors.MoatKvError] = []

        async def write(server: Server, value: bytes, rev: int) -> None:
            outcomes.append(await server.group(server.make(A, value, expect=rev)))

        rev = 0
        for number in range(30):
            outcomes.clear()
            async with anyio.create_task_group() as tasks:
                for server in found:
                    tasks.start_soon(write, server, b"%d" % number, rev)
            won = [each for each in outcomes if not isinstance(each, errors.MoatKvError)]
            lost = [each for each in outcomes if isinstance(each, errors.MoatKvError)]
            assert len(won) == 1
            assert [type(each) for each in lost] == [errors.Conflict] * 2
            rev = won[0][0].rev
            assert {each.have for each in lost} == {rev}


async def test_plain_writes_from_all_servers_all_enter(url: str) -> None:
    """Singly and in batches that meet each other, on few paths."""
    async with servers(url, 3, history=1000) as found, anyio.create_task_group() as tasks:

        async def write(server: Server, lane: int) -> None:
            chance = random.Random(f"{server.name} {lane}")
            for number in range(12):
                outcome = await server.group(
                    *[
                        server.make(Path("p", each), b"%d" % number)
                        for each in chance.sample(range(8), chance.choice([1, 1, 1, 3]))
                    ]
                )
                assert not isinstance(outcome, errors.MoatKvError)
                written.extend(outcome)

        written: list[Record] = []
        async with anyio.create_task_group() as writers:
            for server in found:
                for lane in range(6):
                    writers.start_soon(write, server, lane)
        await until_equal(found)
        assert await engine_probe.all_records(found[0].engine) == sorted(written)
        assert len({record.id for record in written}) == len(written)
        tasks.cancel_scope.cancel()


async def test_counting_up_from_all_servers_loses_no_count(url: str) -> None:
    async with servers(url, 3) as found:

        async def count(server: Server) -> None:
            done = 0
            while done < 20:
                head = server.replica.head(A)
                value = int(head.value or 0) if head is not None else 0
                rev = head.rev if head is not None else 0
                outcome = await server.group(server.make(A, b"%d" % (value + 1), expect=rev))
                done += not isinstance(outcome, errors.MoatKvError)

        async with anyio.create_task_group() as tasks:
            for server in found:
                tasks.start_soon(count, server)
        await until_equal(found)
        assert found[0].replica.values == {A: b"60"}


async def test_a_guard_that_another_server_has_changed_refuses(url: str) -> None:
    async with servers(url) as (one, two):
        outcomes: dict[str, list[Record] | errors.MoatKvError] = {}

        async def pass_on() -> None:
            outcomes["passed"] = await one.group(one.make(C, b"passed"))

        async def guarded(claim: Record) -> None:
            guard = Guard(C, claim.rev, "fence")
            group = (
                two.make(A, b"1", guards=(guard,)),
                two.make(B, b"1", guards=(guard, Guard(C, EXISTS, "session"))),
            )
            outcomes["guarded"] = await two.group(*group)

        for number in range(30):
            claim = await one.set(C, b"%d" % number)
            await until(lambda rev=claim.rev: two.engine.revision >= rev)  # type: ignore[misc]
            async with anyio.create_task_group() as tasks:
                if number % 2:
                    tasks.start_soon(pass_on)
                tasks.start_soon(guarded, claim)
                if not number % 2:
                    tasks.start_soon(pass_on)
            passed, written = outcomes["passed"], outcomes["guarded"]
            assert not isinstance(passed, errors.MoatKvError)
            if isinstance(written, errors.MoatKvError):
                assert isinstance(written, errors.StaleFence)
                assert written.have == passed[0].rev
            else:
                assert [each.rev for each in written] == [passed[0].rev - 2, passed[0].rev - 1]
        await until_equal([one, two])


async def test_messages_reach_all_servers(url: str) -> None:
    async with servers(url, 3) as found:
        for topic in (Path(), P("a.b"), Path("ü", 1)):
            found[0].engine.send(topic, b"1")
        wanted = [(Path(), b"1"), (P("a.b"), b"1"), (Path("ü", 1), b"1")]
        await until(lambda: all(len(each.replica.messages) == 3 for each in found))
        assert [each.replica.messages for each in found] == [wanted] * 3


async def test_all_servers_forget_deletions_and_can_write_there_again(url: str) -> None:
    async with servers(url, tombstone_s=0.0) as (one, two):
        for number in range(29):
            await one.set(Path("p", number), b"1")
            await one.set(Path("p", number), None)
        await one.set(Path("p", 29), b"1")
        gone = await one.set(Path("p", 29), None)
        await one.set(C, b"kept")
        await compacted(one, gone.rev)
        await until(lambda: two.engine.floor == gone.rev)
        await until_equal([one, two])
        assert set(two.replica.heads) == {C}
        # Single writes and a batch, by the server that removed the deletions and by the other one.
        for server, start in ((two, 0), (one, 15)):
            await server.set(Path("p", start), b"new", expect=0)
            outcome = await server.group(
                *[server.make(Path("p", start + n), b"new", expect=0) for n in range(1, 15)]
            )
            assert not isinstance(outcome, errors.MoatKvError)
        await until_equal([one, two])
        assert len(one.replica.heads) == 31
        assert await two.engine.compact() == gone.rev


async def test_deletions_whose_removal_was_cut_short_are_gone_all_the_same(
    node: nats_servers.Node, url: str
) -> None:
    """The server that raised the floor has died before it removed anything."""
    async with servers(url, tombstone_s=0.0) as (one, two):
        await one.set(A, b"1")
        gone = await one.set(A, None)
        await one.set(B, b"1")
        client = await nats_py.connect(f"nats://{node.address}")
        network = url.rpartition("/")[2]
        floor = nats_stream.floor_body(gone.rev)
        await client.jetstream().publish(f"moat.{network}.log.floor", floor)
        await client.close()
        await until(lambda: one.engine.floor == two.engine.floor == gone.rev)
        assert set(one.replica.heads) == {B}
        async with servers(url, 1, tombstone_s=0.0) as (three,):
            assert three.replica.heads == one.replica.heads
            assert await engine_probe.all_records(three.engine, gone.rev - 1) == [
                one.replica.heads[B]
            ]
            await three.set(A, b"again", expect=0)
            await until_equal([one, two, three])
            gone = await two.set(A, None)
            await compacted(three, gone.rev)
        async with servers(url, 1) as (four,):
            assert set(four.replica.heads) == {B}


async def test_what_others_publish_there_harms_nobody(node: nats_servers.Node, url: str) -> None:
    network = url.rpartition("/")[2]
    async with servers(url) as (one, two):
        await one.set(A, b"1")
        client = await nats_py.connect(f"nats://{node.address}")
        jetstream = client.jetstream()
        for subject in ("kv.a", "kv.other", "kv.=xZZ", "log.strange"):
            await jetstream.publish(f"moat.{network}.{subject}", b"not ours")
        await client.publish(f"moat.{network}.msg.=xZZ", b"not ours")
        # A path that a foreign message lies on can still be written.
        await one.set(A, b"2")
        await two.set(P("other"), b"1", expect=0)
        await until_equal([one, two])
        assert one.replica.values == {A: b"2", P("other"): b"1"}
        await client.close()
    async with servers(url, 1) as (three,):
        assert three.replica.values == {A: b"2", P("other"): b"1"}


async def test_any_client_of_nats_can_follow_a_subtree(node: nats_servers.Node, url: str) -> None:
    network = url.rpartition("/")[2]
    client = await nats_py.connect(f"nats://{node.address}")
    heard = await client.subscribe(f"moat.{network}.kv.house.>")
    await client.flush()
    async with servers(url, 1) as (one,):
        await one.set(P("garden.lamp"), b"1")
        await one.set(P("house.hall.lamp"), b"1")
        message = await heard.next_msg(timeout=30)
        assert message.subject == f"moat.{network}.kv.house.hall.lamp"
    await client.close()


async def test_a_larger_value_than_nats_takes_is_refused_alone(
    node: nats_servers.Node, url: str
) -> None:
    async with servers(url) as (one, two):
        with pytest.raises(errors.StorageFailed, match="max_payload"):
            await one.set(A, bytes(nats_servers.MAX_PAYLOAD))
        await one.set(A, bytes(nats_servers.MAX_PAYLOAD - 5_000))
        await until_equal([one, two])


async def test_a_newcomer_is_told_how_far_its_load_is(url: str) -> None:
    async with servers(url, 1) as (one,):
        for start in range(0, 3000, 1000):
            outcome = await one.group(*[one.make(Path("p", start + n), b"1") for n in range(1000)])
            assert not isinstance(outcome, errors.MoatKvError)
    told: list[tuple[int, int]] = []
    engine = nats.NatsEngine(url, progress=lambda done, total: told.append((done, total)))
    replica = engine_probe.DictReplica()
    async with engine.running(replica):
        assert len(replica.heads) == 3000
    assert told[0][1] == 3000
    assert told[-1] == (3000, 3000)
    assert told == sorted(told)
    assert json.dumps(engine.describe()["records"]) == "6000"
