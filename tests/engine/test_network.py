"""A server goes on without its network, and what it took comes into the log, once, or is kept."""

from __future__ import annotations

import pathlib

import anyio
import anyio.abc
import pytest

from moat_kv import codec, errors
from moat_kv.entry import Record, Write, base_rev
from tests.client.waiting import others_wait, until
from tests.engine.fake_remote import SharedLog
from tests.engine.network_nodes import (
    A,
    B,
    Node,
    in_conflict,
    is_pending,
    nodes,
    unpacked,
    values,
    written,
)

pytestmark = pytest.mark.anyio


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
        await others_wait()
        assert not started.is_set()
        node.remote.heal()
        with anyio.fail_after(30):
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
