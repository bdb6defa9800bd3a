"""The procedure that follows switches both ways, on the simulated bus, with a small tree."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv.path import P
from moat_kv.testing.onewire import Code, SimulatedBus
from tests.onewire.fake_runner import FakeTree, running

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("onewire")]

SINGLE = "05.0000501A4900"
DUAL = "3A.00003A2B0001"
BASE = "home.onewire.switch"
LAMP = P(f"{BASE}.{SINGLE}.PIO")
FAN = P(f"{BASE}.{DUAL}.B")
STATE = "home.onewire.state.switches"


@pytest.fixture
def tree() -> FakeTree:
    return FakeTree()


def job(bus: SimulatedBus) -> dict[str, Any]:
    return {"port": bus.port, "interval_s": 0.02, "retry_s": 0.02, "retry_max_s": 0.1}


def value(tree: FakeTree, path: Any) -> Any:
    return tree.value(str(path))


def state(tree: FakeTree) -> str | None:
    found = tree.value(STATE)
    return None if found is None else found["state"]


async def settled(tree: FakeTree, bus: SimulatedBus) -> None:
    """Three whole rounds during which neither side is written."""
    with anyio.fail_after(30):
        while True:
            before = len(tree.writes), len(bus.requests("WRITE"))
            rounds = len(bus.requests("DIRALL"))
            await bus.until(lambda seen=rounds: len(bus.requests("DIRALL")) > seen + 3)  # type: ignore[misc]
            if before == (len(tree.writes), len(bus.requests("WRITE"))):
                return


async def test_every_output_gets_an_entry_with_its_state(bus: SimulatedBus, tree: FakeTree) -> None:
    bus.set_output(DUAL, True, 1)
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
    found = {
        str(path[3:]): value for path, (value, _) in tree.entries.items() if path[2] == "switch"
    }
    octal = {f"29.0000290C0001.{i}": False for i in range(8)}
    assert found == {f"{SINGLE}.PIO": False, f"{DUAL}.A": False, f"{DUAL}.B": True, **octal}
    assert bus.requests("WRITE") == []


async def test_changed_entry_is_written_to_the_bus_once(bus: SimulatedBus, tree: FakeTree) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        tree.set(LAMP, True)
        await bus.until(lambda: bus.outputs(SINGLE) == [True])
        tree.set(FAN, 1)
        await bus.until(lambda: bus.outputs(DUAL) == [False, True])
        await settled(tree, bus)
        assert [seen.path for seen in bus.requests("WRITE")] == [f"/{SINGLE}/PIO", f"/{DUAL}/PIO.B"]
        assert [path for path, _ in tree.writes].count(LAMP) == 2  # ours at the start, and that


async def test_change_on_the_bus_is_written_to_its_entry_once(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        writes = len(tree.writes)
        bus.set_output(DUAL, True, 1)
        await tree.until(lambda: value(tree, FAN) is True)
        await settled(tree, bus)
        assert tree.writes[writes:] == [(FAN, True)]
        assert bus.requests("WRITE") == []


async def test_changes_on_both_sides_do_not_play_ping_pong(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        for turn in range(20):
            tree.set(LAMP, turn % 2 == 0)
            bus.set_output(SINGLE, turn % 3 == 0)
            await anyio.lowlevel.checkpoint()
        await settled(tree, bus)
        assert [value(tree, LAMP)] == bus.outputs(SINGLE)
        assert len(bus.requests("WRITE")) <= 20


async def test_entry_changed_while_the_bus_is_read_is_not_overwritten(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        bus.hold()
        await bus.until(lambda: bus.waiting == 1)
        bus.set_output(SINGLE, True)
        tree.set(LAMP, True)
        tree.set(LAMP, False)
        bus.release()
        await settled(tree, bus)
        assert [value(tree, LAMP)] == bus.outputs(SINGLE)


@pytest.mark.parametrize("prefer", ["entry", "bus"])
async def test_at_the_start_the_preferred_side_wins(
    bus: SimulatedBus, tree: FakeTree, prefer: str
) -> None:
    tree.set(LAMP, True)
    async with running(tree, "onewire.switches", **job(bus), prefer=prefer):
        await tree.until(lambda: state(tree) == "up")
        await settled(tree, bus)
        assert value(tree, LAMP) is (prefer == "entry")
        assert bus.outputs(SINGLE) == [prefer == "entry"]


@pytest.mark.parametrize("prefer", ["entry", "bus"])
async def test_switch_that_lost_its_power_comes_back_as_preferred(
    bus: SimulatedBus, tree: FakeTree, prefer: str
) -> None:
    async with running(tree, "onewire.switches", **job(bus), prefer=prefer):
        await tree.until(lambda: state(tree) == "up")
        tree.set(LAMP, True)
        await bus.until(lambda: bus.outputs(SINGLE) == [True])
        bus.unplug(SINGLE)
        await tree.until(lambda: tree.errors.get(LAMP) == "not on the bus")
        bus.replug(SINGLE, power_lost=True)
        await tree.until(lambda: LAMP not in tree.errors)
        await settled(tree, bus)
        assert value(tree, LAMP) is (prefer == "entry")
        assert bus.outputs(SINGLE) == [prefer == "entry"]


async def test_wish_made_while_the_bus_server_is_away_is_carried_out_later(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    async with running(tree, "onewire.switches", **job(bus), prefer="bus") as call:
        await tree.until(lambda: state(tree) == "up")
        await bus.stop()
        await tree.until(lambda: state(tree) == "down")
        tree.set(LAMP, True)
        await bus.start()
        await bus.until(lambda: bus.outputs(SINGLE) == [True])
        await tree.until(lambda: state(tree) == "up" and not tree.errors)
        await settled(tree, bus)
        assert value(tree, LAMP) is True
        assert call.set_up == 2


async def test_failing_write_is_an_error_record_and_tried_again(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        bus.fail(Code.WRITE_COMMUNICATION, SINGLE, operations=["write"])
        tree.set(LAMP, True)
        await tree.until(lambda: "while writing (67)" in tree.errors.get(LAMP, ""))
        tree.set(FAN, True)
        await bus.until(lambda: bus.outputs(DUAL) == [False, True])
        assert set(tree.errors) == {LAMP}
        bus.mend(SINGLE)
        await bus.until(lambda: bus.outputs(SINGLE) == [True])
        await tree.until(lambda: not tree.errors)
        assert value(tree, LAMP) is True


async def test_failing_read_is_an_error_record_on_each_output(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    both = {FAN, FAN % 1 / "A"}
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        bus.fail(Code.DEVICE, DUAL)
        await tree.until(lambda: set(tree.errors) == both)
        bus.mend(DUAL)
        await tree.until(lambda: not tree.errors)


@pytest.mark.parametrize("wrong", ["on", 2, None, [True]], ids=str)
async def test_value_that_is_no_state_is_an_error_and_not_written(
    bus: SimulatedBus, tree: FakeTree, wrong: Any
) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        tree.set(LAMP, wrong)
        await tree.until(lambda: "true or false" in tree.errors.get(LAMP, ""))
        await settled(tree, bus)
        assert value(tree, LAMP) == wrong
        assert bus.requests("WRITE") == []
        assert set(tree.errors) == {LAMP}
        tree.set(LAMP, True)
        await bus.until(lambda: bus.outputs(SINGLE) == [True])
        await tree.until(lambda: not tree.errors)


async def test_entry_of_no_output_is_an_error(bus: SimulatedBus, tree: FakeTree) -> None:
    wrong = P(f"{BASE}.{DUAL}.C")
    async with running(tree, "onewire.switches", **job(bus)):
        tree.set(wrong, True)
        await tree.until(lambda: "no output" in tree.errors.get(wrong, ""))


async def test_entry_of_a_switch_that_is_not_there_is_missed_until_deleted(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    gone = P(f"{BASE}.05.00005000FFFF.PIO")
    tree.set(gone, True)
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: tree.errors.get(gone) == "not on the bus")
        tree.delete(gone)
        await tree.until(lambda: not tree.errors)
        await settled(tree, bus)
        assert value(tree, gone) is None


async def test_deleted_entry_comes_back_from_the_bus(bus: SimulatedBus, tree: FakeTree) -> None:
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        tree.delete(LAMP)
        await tree.until(lambda: value(tree, LAMP) is False)


async def test_change_on_the_bus_replaces_a_value_that_is_no_state(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    tree.set(LAMP, "on")
    async with running(tree, "onewire.switches", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        await settled(tree, bus)
        assert value(tree, LAMP) == "on"
        bus.set_output(SINGLE, True)
        await tree.until(lambda: value(tree, LAMP) is True and not tree.errors)
