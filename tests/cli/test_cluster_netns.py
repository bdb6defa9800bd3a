"""`moat kv cluster up --netns`: nodes in namespaces, cut by the system, and none is left."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from moat_kv.testing import cluster, cluster_netns, cluster_plan
from tests.cli.box import Box, processes_of

NEEDS = "needs root on Linux, the program ip, and the right to make network namespaces"


def namespaces() -> set[str]:
    """Those that are there, by name."""
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in found.stdout.splitlines() if line.strip()}


def of(prefix: str) -> set[str]:
    """Those of one cluster; others may make some at any time."""
    return {each for each in namespaces() if each.startswith(f"{prefix}-")}


@pytest.fixture(scope="module")
def namespaces_can_be_made() -> None:
    """Skips with the reason where they cannot."""
    try:
        cluster_netns.check()
    except cluster_netns.NetnsFailed as exc:
        pytest.skip(f"{NEEDS}: {exc}")
    name = f"{cluster_netns.new_prefix()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"{NEEDS}: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, namespaces_can_be_made: None) -> Iterator[Box]:
    """One NATS node and two servers; the last thing is their end, with nothing left."""
    box = Box(tmp_path_factory.mktemp("netns"))
    ours: set[str] = set()
    try:
        said = box.do("up", "--netns", "--nodes", "1", "--servers", "2")
        assert said.startswith(f"1 NATS node and 2 servers are up, in {box.folder}\ns1  unix://")
        box.urls = {name: str(each["url"]) for name, each in box.seen().items()}
        ours = of(cluster.Cluster(box.folder).plan.netns)
        assert len(ours) == 4
        yield box
    finally:
        assert box.do("down") == "the cluster is down, and nothing is left of it\n"
        assert not ours & namespaces()
        assert not box.folder.exists()
        assert processes_of(box.folder) == []


@pytest.fixture
def plan(tmp_path: pathlib.Path, namespaces_can_be_made: None) -> Iterator[cluster_plan.Plan]:
    """The namespaces of one NATS node and two servers, with nobody in them."""
    prefix = cluster_netns.new_prefix()
    plan = cluster_plan.make_in_namespaces(1, 2, prefix, tmp_path)
    try:
        cluster_netns.make(plan)
        yield plan
    finally:
        cluster_netns.remove(plan)
        assert not of(prefix)


def reaches(plan: cluster_plan.Plan, name: str, other: str) -> bool:
    """Whether a connection from one member to another one is made."""
    address = plan.member(other).address

    def listen() -> socket.socket:
        return socket.create_server((address, 0))

    with cluster_netns.within(plan, other, listen) as server:
        place = server.getsockname()

        def connect() -> bool:
            try:
                socket.create_connection(place, timeout=0.5).close()
            except OSError:
                return False
            return True

        return cluster_netns.within(plan, name, connect)


def cut(plan: cluster_plan.Plan, *pairs: tuple[str, str]) -> cluster_plan.Plan:
    """Cut these ways, and no others."""
    changed = dataclasses.replace(plan, cuts=frozenset(pairs))
    cluster_netns.arrange(changed)
    return changed


def test_what_is_cut_off_is_cut_by_the_system_and_comes_back(box: Box) -> None:
    assert box.do("cut", "s2") == "s2 is cut off, and has noticed\n"
    kept = "moat: kept on s2; not in the network yet\n"
    box.data("s2", "lamp", "set", "-v", ":", "green", says=kept)
    box.data("s1", "lamp", "set", "-v", ":", "red")
    seen = box.seen()
    assert (seen["s2"]["state"], seen["s2"]["attached"], seen["s2"]["outbox"]) == ("cut", False, 1)
    assert (seen["s1"]["attached"], seen["s1"]["via"]) == (True, "nats1")
    assert "1 conflict" in box.do("heal")
    for name in ("s1", "s2"):
        box.becomes(name, "lamp", "red\n")


def test_a_second_up_finds_it_and_does_not_take_it_for_another_one(box: Box) -> None:
    assert "1 NATS node and 2 servers are up already" in box.do("up", "--netns")
    code, line = box.refused("up", "--netns", "--servers", "3")
    assert (code, "2 servers, in namespaces, in " in line) == (1, True)
    assert box.refused("up", "--netns", "--port", "1234")[0] == 128


def test_each_direction_of_each_pair_is_cut_by_itself(plan: cluster_plan.Plan) -> None:
    assert reaches(plan, "s1", "nats1")
    for pair in (("s1", "nats1"), ("nats1", "s1")):  # the answers are lost, too
        cut(plan, pair)
        assert not reaches(plan, "s1", "nats1")
        assert reaches(plan, "s2", "nats1")
        assert reaches(plan, "s1", "s2")
    cut(plan)
    assert reaches(plan, "s1", "nats1")


def test_what_was_sent_before_a_cut_comes_and_what_is_sent_in_it_does_not(
    plan: cluster_plan.Plan,
) -> None:
    def open_port(name: str) -> socket.socket:
        made = socket.socket(type=socket.SOCK_DGRAM)
        made.bind((plan.member(name).address, 0))
        made.settimeout(0.3)
        return made

    with (
        cluster_netns.within(plan, "s1", lambda: open_port("s1")) as here,
        cluster_netns.within(plan, "nats1", lambda: open_port("nats1")) as there,
    ):
        here.sendto(b"before", there.getsockname())
        assert there.recv(100) == b"before"
        cut(plan, ("s1", "nats1"))
        here.sendto(b"lost", there.getsockname())
        with pytest.raises(TimeoutError):
            there.recv(100)
        there.sendto(b"the other way", here.getsockname())
        assert here.recv(100) == b"the other way"
        cut(plan)
        here.sendto(b"after", there.getsockname())
        assert there.recv(100) == b"after"


def test_namespaces_that_are_gone_are_made_again_with_their_cuts(plan: cluster_plan.Plan) -> None:
    """As after a new start of the machine."""
    changed = cut(plan, ("s2", "nats1"))
    cluster_netns.remove(plan)
    cluster_netns.make(changed)
    assert not reaches(plan, "s2", "nats1")
    assert reaches(plan, "s1", "nats1")
    cluster_netns.make(plan)  # all are there
    assert reaches(plan, "s2", "nats1")


def test_what_namespaces_cannot_do_is_refused_and_changes_nothing(
    plan: cluster_plan.Plan, tmp_path: pathlib.Path
) -> None:
    box = cluster.Cluster(tmp_path)
    cluster_plan.save(plan, tmp_path)
    with pytest.raises(cluster.ClusterError, match="not to be had with namespaces"):
        box.slow(0.2)
    with pytest.raises(cluster.ClusterError, match="not to be had with namespaces"):
        box.heal(reset=True)
    assert box.plan == plan
    box.split(["s1"], ["nats1", "s2"])
    assert not reaches(plan, "s1", "nats1")
    assert reaches(plan, "s2", "nats1")
    box.heal()
    assert reaches(plan, "s1", "nats1")


def test_an_up_that_fails_leaves_no_namespace(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, namespaces_can_be_made: None
) -> None:
    seen = set()

    def fail(plan: cluster_plan.Plan) -> None:
        seen.update(of(plan.netns))
        raise cluster_netns.NetnsFailed("ip: something is wrong")

    monkeypatch.setattr(cluster_netns, "arrange", fail)
    with pytest.raises(cluster.ClusterError, match="something is wrong"):
        cluster.Cluster(tmp_path / "box").up(nodes=1, servers=1, netns=True)
    assert len(seen) == 3
    assert not seen & namespaces()
    assert not (tmp_path / "box").exists()


def test_who_is_not_root_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(cluster.ClusterError, match=r"need root|are Linux's"):
        cluster.Cluster(tmp_path / "box").up(nodes=1, servers=1, netns=True)
    assert not (tmp_path / "box").exists()


def test_where_ip_is_missing_it_is_told_what_to_install(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(cluster_netns.NetnsFailed, match=r"`ip` \(Debian: iproute2\)|are Linux's"):
        cluster_netns.check()
