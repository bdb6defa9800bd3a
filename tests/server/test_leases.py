"""Which servers of a network are alive, and who may act for whom."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.abc
import pytest

from moat_kv import P, errors, open_client
from moat_kv.engine.memory import MemoryEngine
from moat_kv.server import leases
from moat_kv.testing.server import running_server
from tests.server.network import PATIENT, TIMES, Network, until

pytestmark = pytest.mark.anyio

N1 = leases.PLACE / "n1"


@contextmanager
def name_taken() -> Iterator[None]:
    """What is inside ends with NameTaken."""
    try:
        yield
    except (errors.NameTaken, BaseExceptionGroup) as exc:
        error: BaseException = exc
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, errors.NameTaken)
        text = "the server name n1 is taken; another server of the network runs under it"
        assert str(error).startswith(text)
    else:
        raise AssertionError("nothing was refused")


async def test_single_server_has_no_lease_and_writes_nothing() -> None:
    engine = MemoryEngine()
    async with running_server(engine=engine) as running:
        await anyio.sleep(0.3)
        assert running.server.leases.held
        assert engine.revision == 0


async def test_lease_is_renewed_and_given_back_at_the_end(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.server("n1") as one, net.server("n2") as two:
        assert one.server.leases.held
        await until(lambda: len(net.history(N1)) >= 4)
        facts = net.history(N1)[-1]
        assert facts["incarnation"] == one.server.incarnation
        assert (facts["lease_s"], facts["urls"]) == (PATIENT.lease_s, [one.url])
        assert not two.server.leases.is_over(one.server.origin)
    assert net.history(N1)[-1] is None


async def test_lease_runs_out_for_itself_before_it_does_for_others(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path)
    async with net.server("n1") as one, net.server("n2") as two:
        one.cut()
        await until(lambda: two.server.leases.is_over(one.server.origin))
        assert not one.server.leases.held
        one.heal()
        await until(lambda: one.server.leases.held)
        await until(lambda: not two.server.leases.is_over(one.server.origin))


async def test_renewal_that_is_not_acknowledged_does_not_count(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path)
    async with net.server("n1") as one:
        one.remote.is_mute = True
        await until(lambda: not one.server.leases.held)
        one.remote.answer()
        await until(lambda: one.server.leases.held)


async def test_who_was_cut_off_judges_nobody_by_what_it_has_missed(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path)
    async with net.server("n1") as one, net.server("n2") as two:
        two.cut()
        await anyio.sleep(TIMES.lease_s + 0.3)
        two.heal()
        assert not two.server.leases.is_over(one.server.origin)


async def test_name_that_another_live_server_has_is_refused(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.server("n1") as one:
        with name_taken():
            async with net.server("n1", home="elsewhere"):
                raise AssertionError("it serves")
        assert one.server.leases.held


async def test_name_of_a_dead_server_is_taken_over_when_its_lease_is_over(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path)
    async with net.server("n1") as one:
        # As if it died now: nothing that it does later reaches the log.
        one.cut()
    began = anyio.current_time()
    async with net.server("n1", home="elsewhere") as again:
        assert again.server.leases.held
    assert anyio.current_time() - began > TIMES.lease_s - 0.1


async def test_server_that_starts_again_on_its_own_files_need_not_wait(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.server("n1") as one:
        one.cut()
    began = anyio.current_time()
    async with net.server("n1") as again:
        assert again.server.leases.held
    assert anyio.current_time() - began < PATIENT.lease_s / 2


async def test_server_whose_name_another_one_took_meanwhile_ends(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path)
    taken, ended = anyio.Event(), anyio.Event()

    async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        with name_taken():
            async with net.server("n1") as one:
                one.cut()
                task_status.started()
                await taken.wait()
                one.heal()
                await anyio.sleep_forever()
        ended.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(serve)
        async with net.server("n1", home="elsewhere") as other:
            taken.set()
            with anyio.fail_after(30):
                await ended.wait()
            await until(lambda: other.server.leases.held)


async def test_server_that_starts_cut_off_takes_its_lease_later(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.server("n1") as one:
        await one.has_copy()
    async with net.server("n1", is_linked=False) as one:
        assert not one.server.leases.held
        one.heal()
        await until(lambda: one.server.leases.held)


async def test_a_group_is_told_that_its_server_is_on_its_own_though_nobody_has_a_session(
    tmp_path: pathlib.Path,
) -> None:
    async with (
        Network(tmp_path).server("n1") as site,
        open_client(site.url) as client,
        client.watch_group(P("g")) as members,
    ):
        with anyio.fail_after(30):
            assert await anext(members) == {}
            site.cut()
            told = await anext(members)
            assert told is not None
            assert told.parted
            assert not site.server.leases.held
            site.heal()
            told = await anext(members)
            assert told is not None
            assert not told.parted
