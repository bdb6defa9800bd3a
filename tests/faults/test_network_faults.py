"""One of each fault of a network; the commands beside this do more, and for longer.

All tests share one network of three NATS nodes and three servers, and clear what they leave.
"""

from __future__ import annotations

import contextlib
import pathlib
import random
from collections.abc import Iterator

import pytest

from moat_kv.testing import cluster
from tests.faults import (
    clock_jumps,
    freeze_network,
    kill_network,
    linearizable_network,
    live_sessions,
    nats_down,
    network_box,
    network_register,
    slow_network,
    split_network,
    wrong_clock,
)
from tests.faults.network_box import Box

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(180),
]

#: Clients pause so long between two writes on average, in seconds: this is no load test.
PAUSE_S = 0.05
#: A read is answered within this time here, in seconds: others use the machine and its disk.
ANSWER_S = 15.0


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> wrong_clock.WrongClock | None:
    """The one of one server, if there is what it takes."""
    with contextlib.suppress(wrong_clock.NotInstalled):
        return wrong_clock.WrongClock(tmp_path_factory.mktemp("clock") / "clock")
    return None


@pytest.fixture(scope="module")
def network(
    tmp_path_factory: pytest.TempPathFactory, clock: wrong_clock.WrongClock | None
) -> Iterator[Box]:
    environment = {clock_jumps.SERVER: clock.environment} if clock is not None else {}
    folder: pathlib.Path = tmp_path_factory.mktemp("network") / "box"
    with cluster.running(folder, environment=environment, settings=network_box.SETTINGS) as made:
        yield network_box.of(made)


@pytest.fixture
async def box(network: Box) -> Box:
    settled_s = await network_box.settle(network)
    assert settled_s < network_box.SETTLE_S
    # What was killed or cut off before has all of it again: one fault at a time.
    await network_box.until_whole(network, network_box.SETTLE_S)
    places = {*split_network.PLACES, *nats_down.PLACES, *clock_jumps.PLACES, "register", "live"}
    return await network_box.cleared(network, sorted(places))


async def test_a_split_loses_nothing_and_what_is_strict_is_linearizable(box: Box) -> None:
    work = network_register.Registers(box=box, chance=random.Random(1))
    async with work.used():
        counts, verdict = await split_network.play(box, ["two"], 1, 1, PAUSE_S)
    assert counts.wrong == []
    assert counts.refused > 0
    assert counts.contested == split_network.ENTRIES
    assert verdict.is_fine, verdict.details()
    assert verdict.found.pending > 0
    assert verdict.conflicts > 0
    operations = work.operations()
    assert sum(one.outcome == "ok" for one in operations) > 50
    verdicts = linearizable_network.judge(operations)
    assert [str(verdict) for verdict in verdicts if not verdict.is_fine] == []
    # A negative control: what servers show meanwhile is not always the network's word.
    verdicts = linearizable_network.judge(operations, plain_reads=True)
    assert any(verdict.answer == "wrong" for verdict in verdicts)


async def test_killed_servers_and_nodes_lose_nothing(box: Box) -> None:
    settled_s, verdict = await kill_network.play(box, 2, 1, 1, PAUSE_S)
    assert settled_s < network_box.SETTLE_S
    assert verdict.is_fine, verdict.details()
    assert verdict.found.acknowledged > 0


async def test_reads_and_plain_writes_go_on_without_nats(box: Box) -> None:
    counts, verdict = await nats_down.play(box, 1, 3.0, 1, PAUSE_S, answer_s=ANSWER_S)
    assert counts.wrong == []
    assert counts.reads > 50
    assert counts.restarts > 0
    assert verdict.is_fine, verdict.details()
    assert verdict.found.pending > 50


async def test_a_slow_link_detaches_nobody(box: Box) -> None:
    times, settled_s, verdict = await slow_network.play(box, 1, 3.0, 1)
    assert times == 0
    assert settled_s < slow_network.SETTLE_S
    assert verdict.is_fine, verdict.details()


async def test_nothing_is_undone_by_what_hung_in_a_frozen_node(box: Box) -> None:
    counts, operations, verdicts = await freeze_network.play(box, 1, 1)
    assert [str(verdict) for verdict in verdicts if not verdict.is_fine] == []
    assert counts.undone == []
    assert len(counts.led_s) + len(counts.other_s) == 1
    assert sum(one.outcome == "ok" for one in operations) > 50


async def test_a_date_that_jumps_while_cut_off_makes_no_wrong_winner(
    box: Box, clock: wrong_clock.WrongClock | None
) -> None:
    if clock is None:
        pytest.skip(f"no libfaketime. {wrong_clock.HINT}")
    number = list(clock_jumps.JUMPS).index("ten years ahead") + len(clock_jumps.JUMPS)
    counts, verdict = await clock_jumps.play(box, clock, 1, 1, PAUSE_S, number)
    assert counts.wrong == []
    assert counts.when == {"cut off": 1}
    assert counts.contested == clock_jumps.ENTRIES
    assert verdict.is_fine, verdict.details()


async def test_a_session_that_others_end_is_seen_to_have_ended(box: Box) -> None:
    """The negative control of what the splits say of sessions."""
    async with live_sessions.kept(box) as live:
        assert await live.ended() == []
        await live.until_shown()
        await live.end_by_another("s2", at="s3")
        assert await live.ended() == ["s2"]
        assert await live.ended() == []
