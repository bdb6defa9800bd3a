"""A crash while the outbox is brought in, and any faults at all: nothing is missing."""

from __future__ import annotations

import pathlib
import random

import anyio
import anyio.abc
import pytest

from moat_kv import errors
from moat_kv.engine import base
from moat_kv.path import Path
from tests.client.waiting import until
from tests.engine.fake_remote import SharedLog
from tests.engine.network_nodes import (
    A,
    Node,
    in_conflict,
    is_pending,
    nodes,
    unpacked,
    values,
    written,
)

pytestmark = pytest.mark.anyio


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
