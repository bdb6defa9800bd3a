"""Finding a node that answers, whatever others do; and a stream that cannot be made yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from nats import errors as nats_errors
from nats.aio import msg as nats_msg

from moat_kv import errors
from moat_kv.engine import nats_connection, nats_line, nats_settings, nats_stream, nats_subjects
from moat_kv.testing import nats

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def nodes() -> Iterator[Sequence[nats.Node]]:
    with nats.server(sync=False) as one, nats.server(sync=False) as two:
        yield one, two


def line_to(*nodes: nats.Node) -> nats_line.Line:
    places = ",".join(node.address for node in nodes)
    return nats_line.Line(nats_settings.parse(f"nats://{places}"), "test")


async def test_a_frozen_node_holds_nobody_up(
    nodes: Sequence[nats.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_line, "CONNECT_S", 30.0)
    frozen, up = nodes
    line = line_to(*nodes)
    frozen.freeze()
    try:
        began = time.monotonic()
        for _ in range(2):  # each of them is the first to be tried once
            connection = await line._again()
            assert connection.server == up.address
            await connection.close()
        assert time.monotonic() - began < nats_line.CONNECT_S
    finally:
        frozen.thaw()


async def test_elsewhere_is_another_node_that_is_good(nodes: Sequence[nats.Node]) -> None:
    line = line_to(*nodes)
    line.connection = connection = await line.first()
    asked = []

    async def is_good(other: nats_connection.Connection) -> bool:
        asked.append(other.server)
        return len(asked) > 1

    with pytest.raises(nats_connection.NoAnswer):
        await line.elsewhere(is_good)
    better = await line.elsewhere(is_good)
    (other,) = {node.address for node in nodes} - {connection.server}
    assert asked == [other, other]
    line.change_to(better)
    assert connection.lost.is_set()
    assert other in connection.trouble
    await connection.close()
    await better.close()


async def test_what_changes_nothing_is_asked_again_until_somebody_answers(
    nodes: Sequence[nats.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_connection, "AGAIN_S", 0.05)
    connection = await line_to(*nodes).first()
    heard: list[bytes] = []

    async def answer(message: nats_msg.Msg) -> None:
        heard.append(message.data)
        if len(heard) == 3:
            await message.respond(b'{"found": 3}')

    await connection.client.subscribe("$JS.API.TEST", cb=answer)
    await connection.know_subscriptions()
    assert await connection.api("TEST", {}, 30.0, changes=False) == {"found": 3}
    with pytest.raises(nats_connection.NoAnswer, match="no answer in time"):
        await connection.api("TEST", {"changes": 1}, 0.3)
    # (Of the first question one more may have been on its way.)
    assert len([each for each in heard if b"changes" in each]) == 1
    await connection.close()


async def test_a_socket_that_is_closed_is_no_fault(
    nodes: Sequence[nats.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop says so with a RuntimeError, when nats-py writes what it has still to send."""
    connection = await line_to(*nodes).first()
    client = connection.client

    def is_closed(data: object) -> None:
        raise RuntimeError("the handler is closed")

    monkeypatch.setattr(client._transport, "write", is_closed)
    monkeypatch.setattr(client._transport, "writelines", is_closed)
    with pytest.raises(nats_errors.ConnectionClosedError):
        client.send(b"PING\r\n")
    client.abort()
    client._pending, client._pending_data_size = [b"PING\r\n"], 6
    await connection.close()
    assert client.is_closed
    assert connection.lost.is_set()


async def test_that_nobody_leads_is_no_answer_if_there_comes_another(
    nodes: Sequence[nats.Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_connection, "AGAIN_S", 0.05)
    connection = await line_to(*nodes).first()
    heard: list[bytes] = []
    nobody = b'{"error":{"code":503,"err_code":10008,"description":"nobody leads"}}'

    async def answer(message: nats_msg.Msg) -> None:
        heard.append(message.data)
        await message.respond(b'{"found": 3}' if len(heard) == 3 else nobody)

    await connection.client.subscribe("$JS.API.TEST", cb=answer)
    await connection.know_subscriptions()
    assert await connection.api("TEST", {}, 30.0, changes=False) == {"found": 3}
    with pytest.raises(nats_connection.Refused, match="nobody leads"):
        await connection.api("TEST", {}, 0.3, changes=False)
    with pytest.raises(nats_connection.Refused, match="nobody leads"):
        await connection.api("TEST", {"changes": 1}, 30.0)
    assert len([each for each in heard if b"changes" in each]) == 1
    await connection.close()


class Young:
    """A connection to a cluster whose nodes do not know each other yet."""

    is_clustered = True
    domain = None

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.is_made = False

    async def api(
        self, what: str, arguments: Any = None, timeout_s: float = 0.0, *, changes: bool = True
    ) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        if what.startswith("STREAM.INFO"):
            raise nats_connection.Refused(404, nats_stream.STREAM_NOT_FOUND, "stream not found")
        self.refusals -= 1
        if self.refusals >= 0:
            raise nats_connection.Refused(
                400, nats_stream.NO_PEERS, "no suitable peers for placement"
            )
        state = {"last_seq": 0, "messages": 0, "bytes": 0}
        return {"config": arguments, "state": state}


@pytest.mark.parametrize("refusals", [3, 10**6], ids=["soon", "never"])
async def test_nodes_that_can_hold_a_stream_are_waited_for(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_stream, "PLACE_S", 30.0 if refusals == 3 else 0.3)
    monkeypatch.setattr(nats_stream, "PLACE_PAUSE_S", 0.01)
    young: Any = Young(refusals)
    settings, names = nats_settings.parse("nats://localhost/x"), nats_subjects.Names("x")
    if refusals == 3:
        assert (await nats_stream.prepare(young, names, settings)).replicas == 3
        return
    with pytest.raises(errors.EngineUnfit, match=r"no suitable peers .*3 replicas"):
        await nats_stream.prepare(young, names, settings)
