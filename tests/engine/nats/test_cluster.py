"""The cluster in a box: its processes are its own, and its network can be parted in every way."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import anyio
import pytest

import moat_kv
from moat_kv import P, config, errors
from moat_kv.testing import background, cluster, cluster_links, cluster_look, cluster_plan, nats

A, B = P("a"), P("b")
#: Longer than any server takes to notice or to come back here, in seconds.
PATIENCE_S = 45.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    """Three nodes and three servers, for all tests of this file."""
    paths = os.pathsep.join(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        with cluster.running(tmp_path_factory.mktemp("box")) as box:
            yield box


@pytest.fixture
def box(shared: cluster.Cluster) -> Iterator[cluster.Cluster]:
    """The same one, healed and whole afterwards."""
    yield shared
    shared.slow()
    shared.heal()
    for name in shared.plan.names:
        if shared.state(name) == "dead":
            shared.start(name)
        shared.thaw(name)
    assert anyio.run(cluster_look.until, shared, cluster_look.is_settled, PATIENCE_S)


async def attached(box: cluster.Cluster, *names: str) -> None:
    """Wait until these servers are in touch, and no other."""

    def is_so(seen: object) -> bool:
        assert isinstance(seen, list)
        return [each.name for each in seen if each.attached] == list(names)

    assert await cluster_look.until(box, is_so, PATIENCE_S), [
        f"{x.name}: {x.attached} {x.via}" for x in await cluster_look.look(box)
    ]


async def write(box: cluster.Cluster, name: str, path: moat_kv.Path, value: object) -> None:
    async with moat_kv.open_client(box.url(name), config=config.Config()) as client:
        await client.set(path, value)


async def strict_write(box: cluster.Cluster, name: str) -> None:
    """One that needs agreement. Raises Detached."""
    async with moat_kv.open_client(box.url(name), config=config.Config()) as client:
        await client.patch(P("count"), "add", 1)


async def agreed_write(box: cluster.Cluster, name: str) -> None:
    """The same, when NATS is at one with itself again: it may have lost its leader once more."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                await strict_write(box, name)
            except (errors.Detached, errors.Unknown):
                await anyio.sleep(0.1)
            else:
                return


async def becomes(box: cluster.Cluster, name: str, path: moat_kv.Path, value: object) -> None:
    """Wait until an entry has that value there."""
    with anyio.fail_after(PATIENCE_S):
        while await read(box, name, path) != value:
            await anyio.sleep(0.1)


async def read(box: cluster.Cluster, name: str, path: moat_kv.Path) -> object:
    async with moat_kv.open_client(box.url(name), config=config.Config()) as client:
        return (await client.get(path)).get("value")


@pytest.mark.anyio
async def test_a_server_that_is_cut_off_agrees_to_nothing(box: cluster.Cluster) -> None:
    box.cut("s3")
    await attached(box, "s1", "s2")
    await agreed_write(box, "s1")
    with pytest.raises(errors.Detached):
        await strict_write(box, "s3")
    await write(box, "s3", A, "kept")
    assert await read(box, "s3", A) == "kept"
    assert await read(box, "s2", A) is None
    box.heal()
    assert await cluster_look.until(box, cluster_look.is_settled, PATIENCE_S)
    await attached(box, "s1", "s2", "s3")
    for name in box.servers:
        await becomes(box, name, A, "kept")


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_in_three_parts_nobody_agrees(box: cluster.Cluster) -> None:
    box.split(*([f"nats{number}", f"s{number}"] for number in (1, 2, 3)))

    async def is_refused(name: str) -> None:
        with pytest.raises((errors.Detached, errors.Unknown)):
            await strict_write(box, name)

    async with anyio.create_task_group() as tasks:
        for name in box.servers:
            tasks.start_soon(is_refused, name)


@pytest.mark.anyio
async def test_a_server_whose_words_are_lost_is_cut_off(box: cluster.Cluster) -> None:
    box.cut("s2", one_way=True)
    assert box.plan.is_cut("s2")
    await attached(box, "s1", "s3")


def test_another_node_leads_when_the_leader_is_frozen(box: cluster.Cluster) -> None:
    leader = box.leader()
    assert leader in box.nodes
    box.freeze(leader)
    assert box.state(leader) == "frozen"
    give_up_at = time.monotonic() + PATIENCE_S
    while box.leader() is None:
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
    assert box.leader() != leader


def test_links_are_the_only_way_between_nodes(box: cluster.Cluster) -> None:
    plan = box.plan
    assert len(plan.links) == 3 * 2 + 3 * 3
    for node in plan.of_kind("nats"):
        text = (box.folder / node.name / "nats.conf").read_text()
        for other in plan.of_kind("nats"):
            assert (str(other.route_port) in text) is (other == node)


def test_what_is_killed_starts_again_with_its_files(box: cluster.Cluster) -> None:
    first = box.pid("s1")
    box.kill("s1", "nats2")
    assert [box.state(name) for name in ("s1", "nats2", "s2")] == ["dead", "dead", "up"]
    with pytest.raises(cluster.ClusterError, match="s1 does not run"):
        box.kill("s1")
    assert box.up()
    assert box.pid("s1") != first
    assert not box.up()


def test_a_name_that_is_not_there_is_told_with_those_that_are(box: cluster.Cluster) -> None:
    with pytest.raises(cluster.NotThere, match=r"no 's9' in the cluster; there is: nats1, .*, s3"):
        box.cut("s9")
    with pytest.raises(cluster.NotThere):
        box.kill("nats0")
    assert box.plan.cuts == frozenset()


def test_a_stranger_gives_no_orders_to_the_links(box: cluster.Cluster) -> None:
    stranger = cluster_plan.load(box.folder)
    assert stranger is not None

    stranger = dataclasses.replace(stranger, token="guessed")
    with pytest.raises(ConnectionError, match="did not take the order"):
        cluster_links.tell(stranger)


# Processes ---------------------------------------------------------------------------------------


def test_another_process_of_the_same_id_is_let_alone(tmp_path: pathlib.Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        stranger = background.Process(pid=process.pid, began="1")
        assert background.state(stranger) == "dead"
        assert not background.send(stranger, signal.SIGKILL)
        background.kill([stranger])
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.write(b"\n")
    assert process.returncode == 0


def test_a_process_is_up_frozen_and_dead(tmp_path: pathlib.Path) -> None:
    starting = background.Starting(
        [sys.executable, "-c", "import os, time; os.write(3, b'it is\\n'); time.sleep(60)"],
        log=tmp_path / "log",
    )
    assert starting.wait(20) == "it is"
    process = starting.process
    assert background.state(process) == "up"
    background.send(process, signal.SIGSTOP)
    while background.state(process) == "up":
        pass
    assert background.state(process) == "frozen"
    background.end([process], limit_s=10)
    assert background.state(process) == "dead"
    starting.close()
    ended = background.Starting(["/bin/sh", "-c", "echo no"], log=tmp_path / "log")
    with pytest.raises(background.NotStarted, match="no"):
        ended.wait(20)
    background.kill([ended.process])
    ended.close()


def test_a_cluster_that_does_not_come_up_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, programs = tmp_path / "box", tmp_path / "bin"
    programs.mkdir()
    (programs / "nats-server").symlink_to(nats.program())
    (programs / "python").write_text("#!/bin/sh\necho 'no Python today' >&2; exit 1\n")
    (programs / "python").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    with pytest.raises(cluster.ClusterError, match="links did not start: no Python today"):
        cluster.Cluster(folder).up()
    assert not folder.exists()


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: pathlib.Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(cluster.ClusterError, match="has other things in it"):
        cluster.Cluster(tmp_path).up()
    with pytest.raises(cluster.NotThere):
        cluster.Cluster(tmp_path).down()
    assert [each.name for each in tmp_path.iterdir()] == ["letter"]
    (tmp_path / cluster_plan.FILE_NAME).write_text(json.dumps({"version": 99}))
    with pytest.raises(cluster.ClusterError, match="not readable"):
        cluster.Cluster(tmp_path).down()


# What a cluster consists of ----------------------------------------------------------------------


def test_a_plan_comes_back_from_its_file(tmp_path: pathlib.Path) -> None:
    plan = cluster_plan.make(3, 2, 27601)
    assert [each.port for each in plan.of_kind("server")] == [27601, 27602]
    cuts = cluster_plan.cut_between(["s1"], ["nats1", "nats2"])

    plan = dataclasses.replace(
        plan, cuts=cuts, processes={"s1": background.Process(pid=1, began="2")}
    )
    cluster_plan.save(plan, tmp_path)
    assert cluster_plan.load(tmp_path) == plan
    assert (tmp_path / cluster_plan.FILE_NAME).stat().st_mode & 0o077 == 0
    assert not plan.is_cut("s1")
    assert dataclasses.replace(plan, cuts=cuts | {("nats3", "s1")}).is_cut("s1")
