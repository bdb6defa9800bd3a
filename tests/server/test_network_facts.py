"""What servers tell each other of themselves: who is there, silent, or behind."""

from __future__ import annotations

import pathlib
from typing import Any

import anyio
import anyio.abc
import pytest

from moat_kv import P, codec, open_client
from moat_kv.engine import local_copy, network
from moat_kv.engine.memory import MemoryEngine
from moat_kv.server import network_facts
from moat_kv.server.server import Server
from moat_kv.testing.server import running_server
from tests.client import waiting
from tests.engine.fake_remote import FakeRemote, SharedLog
from tests.server import sites

pytestmark = pytest.mark.anyio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def facts(node: str = "n2", **more: Any) -> dict[str, Any]:
    known = {"node": node, "incarnation": "x", "epoch": "", "revision": 0, "attached": True}
    return known | more


def known(clock: Clock) -> network_facts.Servers:
    server = Server("n1", MemoryEngine())
    server.engine.epoch = ""
    return network_facts.Servers(server, clock=clock)


def states(servers: network_facts.Servers) -> list[tuple[str, str, int | None]]:
    return [(row["node"], row["state"], row["lag"]) for row in servers.rows()]


def test_who_is_not_heard_of_is_silent_and_then_forgotten() -> None:
    clock = Clock()
    servers = known(clock)
    servers.hear(codec.pack(facts(revision=7)))
    servers.hear(codec.pack(facts("n3", attached=False, epoch="another")))
    assert states(servers) == [
        ("n1", "attached", 7),
        ("n2", "attached", 0),
        ("n3", "cut off", None),
    ]
    clock.now += network_facts.SILENT_S + 1
    servers.hear(codec.pack(facts("n3")))
    assert states(servers) == [("n1", "attached", 7), ("n2", "silent", 0), ("n3", "attached", 7)]
    clock.now += network_facts.FORGET_S
    servers.hear(codec.pack(facts("n3")))
    assert [row["node"] for row in servers.rows()] == ["n1", "n3"]


def test_a_restarted_server_takes_the_place_of_its_earlier_run() -> None:
    clock = Clock()
    servers = known(clock)
    servers.hear(codec.pack(facts()))
    servers.hear(codec.pack(facts(incarnation="y")))
    assert len(servers.rows()) == 3  # two of one name at once are a mistake to be seen
    clock.now += network_facts.SILENT_S + 1
    servers.hear(codec.pack(facts(incarnation="y")))
    assert [row["incarnation"] for row in servers.rows() if row["node"] == "n2"] == ["y"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        codec.pack(None),
        codec.pack([1]),
        codec.pack({"node": 1}),
        codec.pack(facts(revision="1")),
        codec.pack(facts() | {"node": ["n"]}),
        codec.pack(facts(epoch=None)),
    ],
)
def test_nonsense_is_ignored(data: bytes) -> None:
    servers = known(Clock())
    servers.hear(data)
    assert len(servers.rows()) == 1


def test_lag_is_logged_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    servers = known(clock)
    tree = servers._server.store.tree
    for revision in range(10, 40):
        servers.hear(codec.pack(facts(revision=revision)))
        servers._look_for_lag()
        clock.now += 1
    assert [each.message for each in caplog.records] == ["lagging: at revision 0, others are at 16"]
    # It goes on, but as far behind as before.
    for revision in range(40, 60):
        tree.revision = revision - 15
        servers.hear(codec.pack(facts(revision=revision)))
        servers._look_for_lag()
        clock.now += 1
    assert len(caplog.records) == 1
    tree.revision = 57
    servers._look_for_lag()
    servers._look_for_lag()
    assert [each.message for each in caplog.records[1:]] == ["not lagging any more: at revision 57"]


async def test_servers_of_a_network_see_each_other(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_facts, "PERIOD_S", 0.02)
    log = SharedLog()
    async with anyio.create_task_group() as tasks:
        urls, remotes = [], []

        async def serve(name: str, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            remote = FakeRemote(log)
            remote.is_linked = True
            file = tmp_path / name
            copy = local_copy.LocalCopy(file, delay_s=0.0)
            engine = network.NetworkEngine(remote, file, origin=f"{name}:log", copy=copy)
            async with running_server(name, engine=engine) as running:
                urls.append(running.url)
                remotes.append(remote)
                task_status.started()
                await anyio.sleep_forever()

        await tasks.start(serve, "n1")
        await tasks.start(serve, "n2")
        async with open_client(urls[0]) as client, client.monitor(P(":")) as heard:

            async def of_n2() -> dict[str, Any]:
                rows = codec.unpack((await client.request("servers", {})).value or b"")
                found: dict[str, Any] = next((row for row in rows if row["node"] == "n2"), {})
                return found

            # A lease that was renewed just now is news to one of them for a moment.
            right = {"state": "attached", "role": "member", "lag": 0, "outbox": 0, "own": False}
            with anyio.fail_after(30):
                seen = await of_n2()
                while {name: seen.get(name) for name in right} != right:
                    await anyio.sleep(0.01)
                    seen = await of_n2()
            assert seen["memory_bytes"] > 1_000_000
            state = await client.state()
            assert [row["node"] for row in state["servers"]] == ["n1", "n2"]
            await client.send(P("ours"), 1)
            (message,) = await waiting.take(heard)
            assert (message.topic, heard.waiting()) == (P("ours"), False)
        tasks.cancel_scope.cancel()


async def test_being_cut_off_is_logged_once_and_its_end(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with sites.site(tmp_path) as here:
        await here.client.set(P("a"), 1)
        assert caplog.messages == []
        here.remote.cut()
        for number in range(3):
            await here.client.set(P("a"), number)
        here.remote.heal()
        await here.settled()
        cut, again = caplog.messages
        assert cut.startswith("cut off from the network: the test has cut it")
        assert again.startswith("in touch with the network again after ")
        assert again.endswith("writes waiting: 1")
