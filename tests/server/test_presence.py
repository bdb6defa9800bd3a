"""Members of groups, seen through any server of a network."""

from __future__ import annotations

import dataclasses
import pathlib

import anyio
import pytest

from moat_kv import Client, P, Path, codec, errors, open_client
from moat_kv.server import presence
from tests.client.waiting import take
from tests.server.network import PATIENT, Network, Site, until

pytestmark = pytest.mark.anyio

G = P("g")


def members(site: Site) -> list[str]:
    return site.server.groups.describe().get("g", [])


async def test_members_of_all_servers_are_seen_through_any(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2") as (one, two),
        open_client(one.url) as here,
        open_client(two.url) as there,
        here.watch_group(G) as watch,
        here.session() as mine,
    ):
        assert await take(watch) == [{}]
        async with there.session() as theirs:
            await there.join(G, "b", session=theirs, info={"load": 2}, role="any")
            (seen,) = await take(watch)
            assert (seen["b"].roles, seen["b"].info.load) == (("any",), 2)
            await here.join(G, "a", session=mine)
            await until(lambda: members(two) == ["a", "b"])
            await there.join(G, "b", session=theirs, info={"load": 3}, role="any")
            while (await take(watch))[0]["b"].info.load != 3:
                pass
        await until(lambda: members(one) == ["a"])


async def test_name_is_taken_on_all_servers(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2") as (one, two),
        open_client(one.url) as here,
        open_client(two.url) as there,
        here.session() as mine,
        there.session() as theirs,
    ):
        await here.join(G, "a", session=mine)
        await until(lambda: members(two) == ["a"])
        with pytest.raises(errors.NameTaken):
            await there.join(G, "a", session=theirs)
        await here.leave(G, "a")
        await until(lambda: members(two) == [])
        await there.join(G, "a", session=theirs)


async def test_of_two_that_join_at_once_one_stays_and_the_other_is_told(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2", "n3") as (one, two, three),
        open_client(one.url) as here,
        open_client(two.url) as there,
        here.session() as mine,
        there.session() as theirs,
    ):
        # Neither has heard of the other: both are cut off when they join.
        for site in (one, two):
            site.cut()
        net.log.now += 1
        await there.join(G, "a", session=theirs, info="theirs")
        net.log.now += 1
        await here.join(G, "a", session=mine, info="mine")
        for site in (one, two):
            site.heal()
        with anyio.fail_after(30):
            await mine.lost.wait()
        assert "it cannot be a in group g again: the member a is taken" in mine.why_lost
        assert not theirs.lost.is_set()
        for site in (one, two, three):
            await until(lambda site=site: members(site) == ["a"])
            _fields, infos = site.server.groups.state(G)
            assert infos is not None
            assert codec.unpack(infos) == {"a": "theirs"}


async def test_cut_off_server_sees_its_own_members_only_and_the_others_do_not(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    listening = dataclasses.replace(PATIENT, silent_s=0.8)
    async with (
        net.server("n1") as one,
        net.server("n2", times=listening) as two,
        open_client(one.url) as here,
        open_client(two.url) as there,
        here.session() as mine,
        there.session() as theirs,
    ):
        await here.join(G, "a", session=mine)
        await there.join(G, "b", session=theirs)
        await until(lambda: members(one) == members(two) == ["a", "b"])
        one.cut()
        # Not when it has not heard of the other for so long, as is the case over there.
        await until(lambda: members(one) == ["a"], PATIENT.silent_s / 2)
        await until(lambda: members(two) == ["b"])
        one.heal()
        await until(lambda: members(one) == members(two) == ["a", "b"])


async def test_no_monitor_hears_what_servers_tell_each_other(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2") as (one, _two),
        open_client(one.url) as here,
        here.monitor(Path()) as heard,
    ):
        await anyio.sleep(3 * PATIENT.presence_s)
        await here.send(P("t"), 1)
        (message,) = await take(heard)
        assert (message.topic, message.value) == (P("t"), 1)


async def test_many_members_come_in_parts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "PART_BYTES", 500)
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2") as (one, two),
        open_client(one.url) as here,
        here.session() as mine,
    ):
        await join_all(here, mine, 30)
        await until(lambda: len(members(two)) == 30)
        async with net.server("n3") as three:
            await until(lambda: len(members(three)) == 30)
        assert members(one) == members(two)


async def join_all(client: Client, session: object, count: int) -> None:
    for number in range(count):
        await client.join(G, f"m{number}", session=session, info=number)  # type: ignore[arg-type]
