"""A server goes on without its network, and what it took comes into the log, once, or is kept."""

from __future__ import annotations

import pathlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

from moat_kv import codec, conflicts, errors
from moat_kv.engine import base, local_copy, network
from moat_kv.entry import Record, Write, base_rev
from moat_kv.path import P, Path
from tests.client.waiting import until
from tests.engine.fake_remote import Canvas, Clock, FakeRemote, SharedLog

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b.c")


class Node:
    """One server: its engine, and what its clients would see."""

    def __init__(
        self, name: str, log: SharedLog, folder: pathlib.Path, tasks: anyio.abc.TaskGroup
    ) -> None:
        self.name = name
        self._tasks = tasks
        self.clock = Clock(log)
        self.remote = FakeRemote(log)
        self.canvas = Canvas()
        self.conflicts: list[conflicts.Conflict] = []
        self._file = folder / f"{name}.sqlite"
        self._tick = 0
        self._lives = 0
        self._leave = self._left = anyio.Event()

    async def start(self, *, linked: bool = True, patience_s: float = 0.05) -> None:
        self._lives += 1
        self.canvas = Canvas()
        self.remote.is_linked = linked
        self.engine = network.NetworkEngine(
            self.remote,
            self._file,
            origin=f"{self.name}:log{self._lives}",
            patience_s=patience_s,
            moment=self.clock,
            copy=local_copy.LocalCopy(self._file, delay_s=0.0),
        )
        self.engine.on_conflict = self.conflicts.append
        self._leave, self._left = anyio.Event(), anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with self.engine.running(self.canvas):
            task_status.started()
            await self._leave.wait()
        self._left.set()

    async def stop(self) -> None:
        self._leave.set()
        await self._left.wait()

    async def restart(self, *, linked: bool = True) -> None:
        await self.stop()
        await self.start(linked=linked)

    def submit(self, path: Path, value: Any, **options: Any) -> list[base.Outcome]:
        """What becomes of it is in the list, some time."""
        self._tick += 1
        packed = None if value is None else codec.pack(value)
        write = Write(path, packed, origin=f"{self.name}:x", tick=self._tick, **options)
        outcomes: list[base.Outcome] = []
        self.engine.submit((write,), outcomes.append)
        return outcomes

    async def write(self, path: Path, value: Any, **options: Any) -> base.Outcome:
        outcomes = self.submit(path, value, **options)
        await until(lambda: outcomes)
        return outcomes[0]

    async def set(self, path: Path, value: Any, **options: Any) -> Record:
        outcome = await self.write(path, value, **options)
        assert not isinstance(outcome, errors.MoatKvError), outcome
        return outcome[0]

    async def settled(self) -> None:
        await until(lambda: self.engine.describe()["outbox"] == 0)


@asynccontextmanager
async def nodes(folder: pathlib.Path, *names: str) -> AsyncIterator[tuple[SharedLog, list[Node]]]:
    log = SharedLog()
    async with anyio.create_task_group() as tasks:
        made = [Node(name, log, folder, tasks) for name in names]
        for node in made:
            await node.start()
        yield log, made
        for node in made:
            await node.stop()


def in_conflict(log: SharedLog) -> list[conflicts.Conflict]:
    return [
        conflicts.unpack(record.value)
        for path, record in log.heads.items()
        if path[: len(conflicts.PLACE)] == conflicts.PLACE and record.value is not None
    ]


def is_pending(record: Record) -> bool:
    return record.rev < 0


def unpacked(conflict: conflicts.Conflict) -> Any:
    assert conflict.value is not None
    return codec.unpack(conflict.value)


def written(log: SharedLog) -> list[Any]:
    return [codec.unpack(record.value) for record in log.records if record.value is not None]


def values(log: SharedLog) -> dict[Path, Any]:
    return {
        path: codec.unpack(record.value)
        for path, record in log.heads.items()
        if record.value is not None and path[: len(conflicts.PLACE)] != conflicts.PLACE
    }


async def test_in_touch_a_write_goes_to_the_log_and_to_all(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        record = await one.set(A, b"1")
        assert not is_pending(record)
        assert (record.rev, one.engine.revision, two.engine.revision) == (1, 1, 1)
        assert two.canvas.shown() == {A: b"1"} == values(log)
        assert isinstance(await two.write(A, b"2", expect=7), errors.Conflict)


async def test_cut_off_plain_writes_are_kept_and_shown_and_others_are_refused(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1") as (log, (one,)):
        await one.set(A, b"1")
        one.remote.cut()
        record = await one.set(A, b"2")
        assert is_pending(record)
        assert (base_rev(record.rev), record.value) == (1, codec.pack(b"2"))
        assert is_pending(await one.set(B, b"3"))
        assert one.canvas.shown() == {A: b"2", B: b"3"}
        for options in ({"expect": 0}, {"strict": True}, {"expires_at": 9e9}, {"session": "s"}):
            assert isinstance(await one.write(A, b"4", **options), errors.Detached)
        assert one.engine.trouble == "cut off from the network: the test has cut it"
        assert values(log) == {A: b"1"}
        one.remote.heal()
        await one.settled()
        assert values(log) == {A: b"2", B: b"3"} == one.canvas.shown()
        assert one.canvas.covers == {}
        assert in_conflict(log) == []
        assert one.engine.trouble is None


async def test_kept_writes_survive_restarts_also_those_without_a_network(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1") as (log, (one,)):
        await one.set(A, b"1")
        one.remote.cut()
        await one.set(A, b"2")
        await one.restart(linked=False)
        assert one.canvas.shown() == {A: b"2"}
        await one.set(B, b"3")
        await one.restart(linked=False)
        assert one.canvas.shown() == {A: b"2", B: b"3"}
        assert one.canvas.restarts == 0
        one.remote.heal()
        await one.settled()
        assert values(log) == {A: b"2", B: b"3"}
        await one.restart(linked=False)
        assert one.canvas.covers == {}
        assert one.canvas.shown() == {A: b"2", B: b"3"}


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_sides_the_later_write_wins_whoever_is_back_first(
    tmp_path: pathlib.Path, first: int
) -> None:
    async with nodes(tmp_path, "n1", "n2", "n3") as (log, (one, two, three)):
        await three.set(A, b"before")
        one.clock.wrong_s, two.clock.wrong_s = 3_600.0, -9e8
        for node in (one, two):
            node.remote.cut()
        await one.set(A, b"early")
        log.now += 60
        await two.set(A, b"late")
        log.now += 60
        for node in (one, two) if first == 0 else (two, one):
            node.remote.heal()
            await node.settled()
        for node in (one, two, three):
            assert node.canvas.shown()[A] == b"late"
        (conflict,) = in_conflict(log)
        assert (conflict.path, unpacked(conflict)) == (A, b"early")
        assert (conflict.loser.node, conflict.winner and conflict.winner.node) == ("n1", "n2")
        assert abs(conflict.loser.at - 1_000) < 1
        assert len(one.conflicts) + len(two.conflicts) == 1


async def test_a_later_write_of_those_in_touch_is_not_undone(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.cut()
        await one.set(A, b"early")
        log.now += 60
        await two.set(A, None)
        await two.set(B, b"x")
        one.remote.heal()
        await one.settled()
        # Deleting what never was is no write; so nothing stood in the way.
        assert values(log) == {A: b"early", B: b"x"}
        one.remote.cut()
        await one.set(A, b"early again")
        log.now += 60
        await two.set(A, None)
        one.remote.heal()
        await one.settled()
        assert values(log) == {B: b"x"}
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"early again"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["writer-first", "deleter-first"])
async def test_a_deletion_of_what_was_not_seen_yet_wins_by_its_time(
    tmp_path: pathlib.Path, order: tuple[int, int]
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, servers):
        for server in servers:
            server.remote.cut()
        assert is_pending(await servers[0].set(A, 1))
        log.now += 1.0
        assert is_pending(await servers[1].set(A, None))
        for index in order:
            servers[index].remote.heal()
            await servers[index].settled()
        assert log.heads[A].value is None
        assert [conflict.value for conflict in in_conflict(log)] == [codec.pack(1)]


@pytest.mark.parametrize("value", [None, 5], ids=["deleted", "the-same"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (2, 0, 1)], ids=str)
async def test_the_later_of_two_alike_wins_over_what_was_between_them(
    tmp_path: pathlib.Path, value: int | None, order: tuple[int, ...]
) -> None:
    async with nodes(tmp_path, "n1", "n2", "n3") as (log, servers):
        await servers[0].set(A, 0)
        for server in servers:
            server.remote.cut()
        for server, written in zip(servers, [value, 2, value], strict=True):
            log.now += 1.0
            assert is_pending(await server.set(A, written))
        for index in order:
            servers[index].remote.heal()
            await servers[index].settled()
        assert log.heads[A].value == (None if value is None else codec.pack(value))
        assert codec.pack(2) in [conflict.value for conflict in in_conflict(log)]


async def test_what_was_deleted_long_ago_does_not_come_back(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        await two.set(A, b"1")
        one.remote.cut()
        await one.set(A, b"2")
        await two.set(A, None)
        log.forget(A)
        one.remote.heal()
        await one.settled()
        assert values(log) == {}
        (conflict,) = in_conflict(log)
        assert (unpacked(conflict), conflict.winner) == (b"2", None)
        assert one.canvas.restarts == 1
        assert A not in one.canvas.shown()


async def test_an_answer_that_is_late_is_given_from_the_outbox(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        first = one.submit(A, b"1")
        record = (await until(lambda: first))[0][0]
        assert is_pending(record)
        assert one.canvas.shown() == {A: b"1"}
        second = one.submit(A, b"2")
        await until(lambda: second)
        assert one.canvas.shown() == {A: b"2"}
        one.remote.answer()
        await one.settled()
        assert written(log) == [b"1", b"2"]
        assert two.canvas.shown() == one.canvas.shown() == {A: b"2"}
        assert in_conflict(log) == []


async def test_what_hung_does_not_undo_what_was_written_after_its_late_answer(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        await two.set(A, b"before")
        one.remote.hangs = True
        outcome = one.submit(A, b"hung")
        assert is_pending((await until(lambda: outcome))[0][0])
        log.now += 1.0
        await two.set(A, b"after")
        one.remote.answer()
        await one.settled()
        assert written(log)[:2] == [b"before", b"after"]
        assert one.canvas.shown()[A] == two.canvas.shown()[A] == b"after"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"hung"


async def test_what_hung_wins_over_nothing_that_was_made_after_it(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        outcome = one.submit(A, b"hung")
        assert is_pending((await until(lambda: outcome))[0][0])
        two.remote.cut()
        log.now += 1.0
        assert is_pending(await two.set(A, b"later"))
        log.now += 9.0
        one.remote.answer()
        await one.settled()
        two.remote.heal()
        await two.settled()
        assert one.canvas.shown()[A] == two.canvas.shown()[A] == b"later"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"hung"


async def test_what_hung_wins_over_nothing_that_came_after_it_though_it_waited_on(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        outcome = one.submit(A, b"hung")
        log.now += 1.0
        await two.set(A, b"after")
        log.now += 1.0
        await two.set(B, b"later still")  # which n1 sees before it keeps its own
        assert is_pending((await until(lambda: outcome))[0][0])
        one.remote.cut()
        log.now += 9.0
        one.remote.hangs = False
        one.remote.heal()
        await one.settled()
        assert one.canvas.shown()[A] == two.canvas.shown()[A] == b"after"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"hung"


async def test_nothing_is_brought_in_before_the_time_is_known(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        for again in range(2):  # each time anew that it is back in touch
            one.remote.cut()
            await two.set(A, b"first")
            log.now += 1.0
            kept = await one.set(A, b"second")
            one.remote.late_s = 5.0

            def learn(kept: Record = kept) -> None:
                assert log.heads[A].origin != kept.origin
                one.remote.late_s = 0.0

            one.remote.when_asked = learn
            one.remote.heal()
            await one.settled()
            assert one.remote.late_s == 0.0
            assert values(log)[A] == b"second"
            assert [unpacked(each) for each in in_conflict(log)] == [b"first"] * (again + 1)


async def test_a_time_that_cannot_be_learnt_keeps_nothing_from_being_brought_in(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1") as (log, (one,)):
        one.remote.cut()
        await one.set(A, b"1")
        asked = []

        def cut_in_between() -> None:
            asked.append(one.remote.is_linked)
            if len(asked) == 1:
                one.remote.cut()

        one.remote.when_asked = cut_in_between
        one.remote.heal()
        await until(lambda: asked)
        assert written(log) == []
        one.remote.heal()
        await one.settled()
        assert (written(log), asked) == ([b"1"], [True, True])


async def test_of_writes_in_flight_together_the_last_one_stays_also_if_it_is_late(
    tmp_path: pathlib.Path,
) -> None:
    """The second was made before the first was stored, which it knew nothing of."""
    async with nodes(tmp_path, "n1", "n2") as (log, (one, _two)):
        one.remote.hangs = True
        first = one.submit(A, b"1")
        second = one.submit(A, b"2")
        log.now += 1.0
        one.remote.answer_one()
        assert not is_pending((await until(lambda: first))[0][0])
        assert is_pending((await until(lambda: second))[0][0])
        one.remote.cut()
        one.remote.hangs = False
        one.remote.heal()
        await one.settled()
        assert written(log) == [b"1", b"2"]
        assert in_conflict(log) == []


@pytest.mark.parametrize("happened", [True, False])
@pytest.mark.parametrize("late", [True, False])
async def test_a_write_of_which_nothing_is_known_is_stored_once(
    tmp_path: pathlib.Path, happened: bool, late: bool
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.hangs = True
        outcome = one.submit(A, b"1")
        if late:
            await until(lambda: outcome)
        one.remote.cut(happened=happened)
        one.remote.hangs = False
        assert isinstance((await until(lambda: outcome))[0][0], Record)
        await one.restart(linked=False)
        if happened:
            await two.set(A, b"on top")
        one.remote.heal()
        await one.settled()
        expected = [b"1", b"on top"] if happened else [b"1"]
        assert written(log) == expected
        assert in_conflict(log) == []


async def test_chained_writes_with_a_crash_in_their_replay_are_exact(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        await two.set(A, b"0")
        one.remote.cut()
        for value in (b"1", b"2", b"3"):
            await one.set(A, value)
        one.remote.is_mute = True  # the replay is stored, but its answer does not come
        one.remote.heal()
        await until(lambda: values(log) == {A: b"3"})
        await one.stop()
        await two.set(A, b"4")
        one.remote.is_mute = False
        await one.start()
        await one.settled()
        assert written(log) == [b"0", b"3", b"4"]
        assert in_conflict(log) == []
        assert one.canvas.shown() == {A: b"4"}


async def test_a_crash_between_winning_and_forgetting_repeats_nothing(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.cut()
        await two.set(A, b"theirs")
        log.now += 1
        await one.set(A, b"mine")
        one.remote.is_mute = True
        one.remote.heal()
        await until(lambda: len(log.records) == 3)
        await one.restart()
        one.remote.is_mute = False
        one.remote.answer()
        await one.settled()
        assert values(log) == {A: b"mine"}
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"theirs"
        assert len(log.records) == 3


async def test_a_crash_between_losing_and_forgetting_repeats_nothing(
    tmp_path: pathlib.Path,
) -> None:
    """Also if after the crash more is known of the time than before."""
    async with nodes(tmp_path, "n1", "n2") as (log, (one, two)):
        one.remote.cut()
        await two.set(A, b"theirs")
        log.now += 1
        await one.set(A, b"mine")
        one.remote.late_s = 3.0
        one.remote.is_mute = True
        one.remote.heal()
        await until(lambda: in_conflict(log))
        one.remote.late_s = 0.0
        await one.restart()
        one.remote.is_mute = False
        one.remote.answer()
        await one.settled()
        assert one.canvas.shown()[A] == b"theirs"
        (conflict,) = in_conflict(log)
        assert unpacked(conflict) == b"mine"
        assert len(log.records) == 2


async def test_while_the_outbox_is_emptied_plain_writes_join_it(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1") as (log, (one,)):
        one.remote.cut()
        await one.set(A, b"1")
        one.remote.hangs = True
        one.remote.heal()
        assert isinstance(await one.write(A, b"2", expect=0), errors.Detached)
        assert is_pending(await one.set(B, b"3"))
        one.remote.answer()
        await one.settled()
        assert values(log) == {A: b"1", B: b"3"}
        assert not is_pending(await one.set(B, b"4"))


async def test_a_newcomer_waits_for_the_whole_tree(tmp_path: pathlib.Path) -> None:
    log = SharedLog()
    log.commit((Write(A, codec.pack(b"1"), origin="x:y", tick=1),))
    async with anyio.create_task_group() as tasks:
        node = Node("n1", log, tmp_path, tasks)
        started = anyio.Event()

        async def start() -> None:
            await node.start(linked=False)
            started.set()

        tasks.start_soon(start)
        await anyio.wait_all_tasks_blocked()
        assert not started.is_set()
        node.remote.heal()
        with anyio.fail_after(10):
            await started.wait()
        assert node.canvas.shown() == {A: b"1"}
        assert node.engine.epoch == "epoch-1"
        await node.stop()


async def test_another_epoch_makes_the_copy_begin_anew_but_for_the_outbox(
    tmp_path: pathlib.Path,
) -> None:
    async with nodes(tmp_path, "n1") as (log, (one,)):
        await one.set(A, b"1")
        one.remote.cut()
        await one.set(B, b"mine")
        await one.stop()
        log.epoch, log.records, log.heads = "epoch-2", [], {}
        log.commit((Write(A, codec.pack(b"other"), origin="x:y", tick=1),))
        await one.start()
        await one.settled()
        assert values(log) == {A: b"other", B: b"mine"} == one.canvas.shown()
        assert one.engine.epoch == "epoch-2"


async def test_what_is_not_in_touch_says_so(tmp_path: pathlib.Path) -> None:
    async with nodes(tmp_path, "n1") as (_log, (one,)):
        await one.set(A, b"1")
        assert [record.rev for record in await one.engine.history(A, limit=5)] == [1]
        one.remote.cut()
        with pytest.raises(errors.Detached):
            await one.engine.history(A, limit=5)
        with pytest.raises(errors.Detached):
            await one.engine.compact()
        facts = one.engine.describe()
        assert (facts["attached"], facts["outbox"]) == (False, 0)


class Accounts:
    """What was answered, and where it must be found afterwards."""

    def __init__(self) -> None:
        self._asked: list[tuple[Node, Path, str, list[base.Outcome]]] = []
        self._deletes: set[str] = set()

    def ask(self, node: Node, path: Path, value: bytes | None) -> None:
        outcomes = node.submit(path, value)
        id_ = f"{node.name}:x:{node._tick}"
        self._asked.append((node, path, id_, outcomes))
        if value is None:
            self._deletes.add(id_)

    def check(self, log: SharedLog) -> int:
        """How many were answered."""
        stored = [record.id for record in log.records]
        assert len(set(stored)) == len(stored), "a write was stored twice"
        lost = {conflict.loser.id for conflict in in_conflict(log)}
        answered = 0
        newest: dict[tuple[str, Path], str] = {}
        for node, path, id_, outcomes in self._asked:
            if not outcomes or isinstance(outcomes[0], errors.MoatKvError):
                continue
            answered += 1
            (record,) = outcomes[0]
            if is_pending(record):
                # Of those that wait only the newest one of each path comes through.
                newest[node.name, path] = id_
            else:
                newest.pop((node.name, path), None)
                # A deletion of what is not there is answered with what is.
                assert id_ in stored or id_ in self._deletes, f"{id_} was answered and is nowhere"
        for id_ in newest.values():
            assert id_ in stored or id_ in lost or id_ in self._deletes, f"{id_} is nowhere"
        return answered


@pytest.mark.parametrize("seed", range(6))
async def test_after_any_faults_all_agree_and_nothing_answered_is_missing(
    tmp_path: pathlib.Path, seed: int
) -> None:
    chance = random.Random(seed)
    accounts = Accounts()
    async with nodes(tmp_path, "n1", "n2", "n3") as (log, servers):
        for server in servers:
            server.clock.wrong_s = chance.uniform(-1e6, 1e6)
        for step in range(60):
            log.now += chance.choice([0, 0.1, 5])
            node = chance.choice(servers)
            match chance.randrange(12):
                case 0:
                    node.remote.cut(happened=chance.random() < 0.5)
                case 1 | 2:
                    node.remote.heal()
                case 3:
                    node.remote.hangs = True
                case 4:
                    node.remote.is_mute = True
                case 5:
                    node.remote.answer()
                case 6 if step % 3 == 0:
                    await node.restart(linked=chance.random() < 0.5)
                case _:
                    path = Path("p", chance.randrange(4))
                    value = None if chance.random() < 0.2 else b"%d" % step
                    accounts.ask(node, path, value)
                    await anyio.sleep(chance.choice([0, 0, 0.01, 0.06]))
        for server in servers:
            server.remote.answer()
            server.remote.heal()
        for server in servers:
            await server.settled()
            assert server.canvas.covers == {}
            assert server.canvas.heads == log.heads
        assert accounts.check(log) > 10
