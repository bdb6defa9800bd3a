"""Who is judged to be in touch, with a line and acknowledgements that the test chooses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv.engine import (
    nats_connection,
    nats_direct,
    nats_feed,
    nats_stream,
    nats_subjects,
    nats_touch,
)
from moat_kv.testing import engine_probe
from tests.engine.nats.jumping_time import Clock

pytestmark = pytest.mark.anyio

NAMES = nats_subjects.Names("x")


@pytest.fixture
def anyio_backend(jumping: Clock) -> tuple[str, dict[str, Any]]:
    """asyncio, by a clock that jumps: here are no sockets, and no threads."""
    return "asyncio", {"loop_factory": jumping.make_loop}


class Node:
    """Stands for a connection to a node that acknowledges after so many seconds; None: never."""

    def __init__(self, net: Net, ack_s: float | None, trip_s: float = 0.0) -> None:
        self.server = f"node-{id(self)}"
        self.is_of_use = False
        self.ack_s = ack_s
        self.trip_s = trip_s
        self.probes = 0
        self.is_dropped = False
        self.has_copy = True
        self._net = net

    async def request(
        self, subject: str, data: bytes, timeout_s: float, again_s: float | None = None
    ) -> bytes:
        assert subject == NAMES.probe
        self.probes += 1
        with anyio.move_on_after(timeout_s):
            while self.ack_s is None:
                await anyio.sleep(0.01)
            await anyio.sleep(self.ack_s)
            self._net.rev += 1
            self._net.feed.know_revision(self._net.rev)
            return json.dumps({"seq": self._net.rev}).encode()
        raise nats_connection.NoAnswer("no answer in time")

    async def drop(self) -> None:
        self.is_dropped = True

    async def round_trip_s(self) -> float:
        await anyio.sleep(self.trip_s)
        return self.trip_s


class Feed(nats_feed.Feed):
    """What was acknowledged has come."""

    def know_revision(self, rev: int) -> None:
        self.revision = max(self.revision, rev)


class Net:
    """A line to one node, and another node that may be of more use."""

    def __init__(self) -> None:
        self.rev = 0
        self.feed = Feed(NAMES, engine_probe.DictReplica())
        self.told: list[str] = []
        self.other: Node | None = None
        self.changed = anyio.Event()
        self.connection: Node | None = None
        self.reason = "no line"
        self.touch = nats_touch.Touch(
            self,  # type: ignore[arg-type]
            NAMES,
            self.feed,
            check=lambda: None,
            attached=lambda: self.told.append("attached"),
            cut_off=self.told.append,
        )

    async def elsewhere(self, is_good: Callable[[Node], Awaitable[bool]]) -> Node:
        if self.other is None or not await is_good(self.other):
            raise nats_connection.NoAnswer("nobody there")
        return self.other

    def change_to(self, better: Node) -> None:
        assert better is self.other
        self.changed.set()

    @asynccontextmanager
    async def connected(self, node: Node) -> AsyncIterator[None]:
        self.connection = node
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.touch.judge)
            tasks.start_soon(self.touch.measure, node)  # type: ignore[arg-type]
            tasks.start_soon(self.touch.prove, node)  # type: ignore[arg-type]
            yield
            tasks.cancel_scope.cancel()

    async def until(self, *told: str) -> None:
        with anyio.fail_after(10):
            while self.told != list(told):
                await anyio.sleep(0.01)


async def until_there(node: Node, names: nats_subjects.Names, rev: int) -> None:
    while not node.has_copy:
        await anyio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_direct, "until_there", until_there)
    for name, value in {
        "DETACH_S": 1.5,
        "LATE_S": 0.15,
        "NEW_S": 0.15,
        "LOOK_S": 0.02,
        "AGAIN_S": 0.05,
        "MEASURE_S": 0.02,
    }.items():
        monkeypatch.setattr(nats_touch, name, value)
    monkeypatch.setattr(nats_stream, "PROBE_S", 2.0)


NO_QUORUM = "NATS does not acknowledge (no quorum?)"


async def test_who_is_acknowledged_is_in_touch_and_else_cut_off_until_it_is_again() -> None:
    net = Net()
    node = Node(net, ack_s=0.0)
    async with net.connected(node):
        await net.until("attached")
        assert node.is_of_use
        await anyio.sleep(1.8)  # an idle server waits for nothing
        assert (net.told, node.probes) == (["attached"], 1)
        node.ack_s = None
        net.touch.wait()
        await net.until("attached", NO_QUORUM)
        node.ack_s = 0.0
        await net.until("attached", NO_QUORUM, "attached")


async def test_who_was_held_up_itself_is_not_cut_off(jumping: Clock) -> None:
    net = Net()
    async with net.connected(Node(net, ack_s=0.0)):
        await net.until("attached")
        net.touch.wait()
        await anyio.sleep(0.01)
        jumping.now += 60  # a stopped process; what was acknowledged waits in its socket
        await anyio.sleep(0.1)
        net.touch.acknowledged()
        await anyio.sleep(1.8)
        assert net.told == ["attached"]


async def test_another_node_that_acknowledges_is_gone_on_with_before_one_is_cut_off() -> None:
    net = Net()
    node = Node(net, ack_s=0.0)
    async with net.connected(node):
        await net.until("attached")
        node.ack_s, net.other = None, Node(net, ack_s=0.0)
        net.touch.wait()
        with anyio.fail_after(5):
            await net.changed.wait()
        assert net.told == ["attached"]
        assert net.touch.waits_s == 0.0


async def test_a_node_that_has_acknowledged_meanwhile_is_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    node = Node(net, ack_s=0.0)
    async with net.connected(node):
        await net.until("attached")
        monkeypatch.setattr(net.feed, "know_revision", lambda rev: None)
        net.rev += 100_000  # of which all comes, but slowly
        node.ack_s, net.other = 0.05, Node(net, ack_s=0.4)
        net.touch.wait()
        with anyio.fail_after(5):
            while not net.other.is_dropped:
                net.feed.revision += 1
                await anyio.sleep(0.01)
        assert not net.changed.is_set()
        assert net.told == ["attached"]


async def test_a_node_that_acknowledges_and_shows_nothing_is_left_for_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    node = Node(net, ack_s=0.0)
    async with net.connected(node):
        await net.until("attached")
        monkeypatch.setattr(net.feed, "know_revision", lambda rev: None)
        net.other = Node(net, ack_s=0.0)
        net.other.has_copy = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(net.feed.reach, net.rev + 1)  # as who has had it acknowledged
            with anyio.fail_after(5):
                while not net.other.probes:
                    await anyio.sleep(0.01)
            assert not net.changed.is_set()
            net.other.has_copy = True
            with anyio.fail_after(5):
                await net.changed.wait()
            tasks.cancel_scope.cancel()
        assert net.told == ["attached"]


async def test_a_slow_line_is_neither_left_nor_thought_to_be_cut() -> None:
    net = Net()
    net.other = Node(net, ack_s=0.9)
    node = Node(net, ack_s=0.9, trip_s=0.3)
    async with net.connected(node):
        await net.until("attached")
        for _ in range(2):
            net.touch.wait()
            with anyio.fail_after(5):
                while net.touch.waits_s:
                    await anyio.sleep(0.01)
        assert net.told == ["attached"]
        assert not net.changed.is_set()


async def test_the_reason_is_what_is_known_and_told_once() -> None:
    net = Net()
    node = Node(net, ack_s=0.0)
    async with net.connected(node):
        await net.until("attached")
        node.ack_s, net.connection = None, None
        net.touch.wait()
        await net.until("attached", "no line")
        net.touch.leave("its stream is gone")
        assert net.told == ["attached", "no line"]


async def test_what_does_not_come_back_is_no_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_touch, "APPLY_S", 0.1)
    net = Net()
    node = Node(net, ack_s=0.0)
    async with net.connected(node):
        await net.until("attached")
        monkeypatch.setattr(net.feed, "know_revision", lambda rev: None)
        net.touch.wait()
        await net.until("attached", "what is written does not come back")
