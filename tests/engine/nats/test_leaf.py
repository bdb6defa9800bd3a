"""A server whose NATS node is a leaf of the cluster that has the network, on a bad line."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
import pytest

from moat_kv import errors
from moat_kv.engine import nats as nats_engine
from moat_kv.engine import nats_remote, network
from moat_kv.path import P
from moat_kv.testing import engine_probe, nats, ports

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b")
DOMAIN = "hub"


class Place:
    """A node with the network, a leaf node, and the line between them, which is the hub's port."""

    def __init__(self, folder: pathlib.Path, *, leaf_has_jetstream: bool) -> None:
        self._port = ports.free_port()
        self.hub = nats.Node(
            folder / "hub",
            "hub",
            extra=f"leafnodes {{ listen: 127.0.0.1:{self._port} }}",
            domain=DOMAIN,
            sync=False,
        )
        self.leaf = nats.Node(
            folder / "leaf",
            "leaf",
            extra=f'leafnodes {{ reconnect: "0.1s", remotes: [ '
            f"{{ url: nats://127.0.0.1:{self._port} }} ] }}",
            jetstream=leaf_has_jetstream,
            domain="edge",
            sync=False,
        )

    @property
    def hub_url(self) -> str:
        return f"nats://{self.hub.address}/house"

    @property
    def leaf_url(self) -> str:
        return f"nats://{self.leaf.address}/house?domain={DOMAIN}"


@contextmanager
def place(folder: pathlib.Path, *, leaf_has_jetstream: bool) -> Iterator[Place]:
    found = Place(folder, leaf_has_jetstream=leaf_has_jetstream)
    try:
        found.hub.start()
        found.leaf.start()
        yield found
    finally:
        found.leaf.stop()
        found.hub.stop()


@pytest.fixture(params=[False, True], ids=["leaf without JetStream", "leaf of another domain"])
def site(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Place]:
    with place(tmp_path / "nats", leaf_has_jetstream=request.param) as found:
        yield found


class Serving:
    """A server's engine, and what it shows."""

    def __init__(self, url: str, file: pathlib.Path, name: str) -> None:
        self.replica = engine_probe.DictReplica()
        remote = nats_remote.NatsRemote(url, name=name)
        # What is pending because the machine is busy is not what is tried here.
        self.engine = network.NetworkEngine(remote, file, origin=f"{name}:log", patience_s=20)
        self.writer = engine_probe.Writer(self.engine)

    async def until(self, is_attached: bool) -> None:
        with anyio.fail_after(40):
            while self.engine.attached is not is_attached:
                await anyio.sleep(0.02)

    async def until_there(self, value: bytes) -> None:
        with anyio.fail_after(40):
            while (head := self.replica.head(A)) is None or head.value != value:
                await anyio.sleep(0.02)


@asynccontextmanager
async def serving(url: str, folder: pathlib.Path, name: str) -> AsyncIterator[Serving]:
    found = Serving(url, folder / f"{name}.sqlite", name)
    async with found.engine.running(found.replica):
        await found.until(True)
        yield found


async def test_a_server_on_a_leaf_shares_the_tree(site: Place, tmp_path: pathlib.Path) -> None:
    async with (
        serving(site.leaf_url, tmp_path, "s1") as far,
        serving(site.hub_url, tmp_path, "s2") as near,
    ):
        assert (await far.writer.set(A, b"\x01")).rev > 0
        await near.until_there(b"\x01")
        await near.writer.set(A, b"\x02")
        await far.until_there(b"\x02")
        with pytest.raises(errors.Conflict):
            await far.writer.set(A, b"\x03", expect=0)
        far.engine.send(B, b"word")
        with anyio.fail_after(30):
            while (B, b"word") not in near.replica.messages:
                await anyio.sleep(0.02)


async def test_a_line_that_is_cut_is_told_once_and_tried_slowly_until_it_is_back(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "moat_kv")
    with place(tmp_path / "nats", leaf_has_jetstream=False) as site:
        async with serving(site.leaf_url, tmp_path, "s1") as far:
            await far.writer.set(A, b"\x01")
            site.hub.kill()
            await far.until(False)
            caplog.clear()
            began = time.monotonic()
            assert (await far.writer.set(A, b"\x04")).rev < 0
            with pytest.raises(errors.Detached):
                await far.writer.set(B, b"\x04", expect=0)
            with anyio.fail_after(40):
                while len(tries := tries_in(caplog)) < 3:
                    await anyio.sleep(0.1)
            # The first come soon after each other, then there is a second between two.
            assert len(tries) <= 9 + (time.monotonic() - began)
            said = [each for each in caplog.records if each.levelno >= logging.WARNING]
            assert len(said) <= 2, [each.getMessage() for each in said]
            site.hub.start()
            await far.until(True)
            await far.until_there(b"\x04")


def tries_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of connections that were of no use."""
    said = [each.getMessage() for each in caplog.records]
    return [text for text in said if "was of no use" in text]


async def test_without_a_domain_a_leaf_is_refused_with_what_to_set(tmp_path: pathlib.Path) -> None:
    with place(tmp_path, leaf_has_jetstream=False) as site:
        engine = nats_engine.NatsEngine(f"nats://{site.leaf.address}/house")
        with pytest.raises(errors.EngineUnfit, match=r"for a leaf node.*\?domain=NAME"):
            async with engine.running(engine_probe.DictReplica()):
                pass


async def test_a_domain_that_is_not_there_is_told_by_its_name(tmp_path: pathlib.Path) -> None:
    with place(tmp_path, leaf_has_jetstream=False) as site:
        engine = nats_engine.NatsEngine(f"nats://{site.leaf.address}/house?domain=elsewhere")
        with pytest.raises(
            errors.EngineUnfit, match="JetStream domain 'elsewhere' is not in reach"
        ):
            async with engine.running(engine_probe.DictReplica()):
                pass


async def test_a_large_tree_comes_through_a_leaf(tmp_path: pathlib.Path) -> None:
    count = 3_000
    with place(tmp_path / "nats", leaf_has_jetstream=False) as site:
        async with serving(site.hub_url, tmp_path, "s1") as near:
            answers = engine_probe.Answers(count)
            for number in range(count):
                write = near.writer.make(P(f"t:{number}"), b"\x01")
                near.engine.submit((write,), answers.done(number))
            await answers.wait()
            async with serving(site.leaf_url, tmp_path, "s2") as far:
                assert far.engine.revision == near.engine.revision
                assert far.replica.head(P(f"t:{count - 1}")) is not None
