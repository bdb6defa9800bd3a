"""Written on both sides while they were apart: the later write wins, whoever is back first."""

from __future__ import annotations

import pathlib

import pytest

from moat_kv import codec
from tests.engine.network_nodes import A, B, in_conflict, is_pending, nodes, unpacked, values

pytestmark = pytest.mark.anyio


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
