"""The procedure that polls thermometers, on the simulated bus, with a small tree."""

from __future__ import annotations

import time
from typing import Any

import pytest

from moat_kv.path import P
from moat_kv.testing.onewire import Code, SimulatedBus
from tests.onewire.fake_runner import FakeTree, running

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("onewire")]

WARM = "28.0000BEDC0001"
BASE = "home.onewire.temp"
STATE = "home.onewire.state.temperatures"
NAMES = ["10.000010A11CE0", "26.000026FE0001", WARM, "28.0000BEDC0002"]


@pytest.fixture
def tree() -> FakeTree:
    return FakeTree()


def job(bus: SimulatedBus) -> dict[str, Any]:
    bus.drift(WARM, 0)
    return {"port": bus.port, "interval_s": 0.02, "retry_s": 0.02, "retry_max_s": 0.1}


def reads(tree: FakeTree, name: str, celsius: float) -> bool:
    found = tree.value(f"{BASE}.{name}")
    return found is not None and found["value"] == celsius


def state(tree: FakeTree) -> str | None:
    found = tree.value(STATE)
    return None if found is None else found["state"]


async def test_every_thermometer_has_an_entry_with_value_and_time(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    begin = time.time()
    async with running(tree, "onewire.temperatures", **job(bus)) as call:
        await tree.until(lambda: state(tree) == "up")
        for name in NAMES:
            found = tree.value(f"{BASE}.{name}")
            assert set(found) == {"value", "at"}
            assert begin <= found["at"] <= time.time()
        assert tree.value(f"{BASE}.{WARM}")["value"] == 21.25
        assert tree.value(STATE)["sensors"] == tree.value(STATE)["read"] == 4
        assert call.set_up == 1
    assert tree.errors == {}


async def test_readings_follow_the_world(bus: SimulatedBus, tree: FakeTree) -> None:
    async with running(tree, "onewire.temperatures", **job(bus)):
        for celsius in (22.0, -3.5, 30.0625):
            bus.set_temperature(WARM, celsius)
            await tree.until(lambda want=celsius: reads(tree, WARM, want))  # type: ignore[misc]


async def test_sensors_measure_at_once_and_not_one_by_one(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
    first = [seen.path for seen in bus.seen][:3]
    assert first[:2] == ["/", "/simultaneous/temperature"]


async def test_new_sensor_is_found(bus: SimulatedBus, tree: FakeTree) -> None:
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        bus.add("28.0000BEDC0003")
        bus.set_temperature("28.0000BEDC0003", 5)
        await tree.until(lambda: reads(tree, "28.0000BEDC0003", 5))


async def test_sensor_that_fails_has_an_error_record_until_it_reads_again(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    path = P(f"{BASE}.{WARM}")
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: reads(tree, WARM, 21.25))
        bus.fail(Code.READ_COMMUNICATION, WARM)
        bus.set_temperature(WARM, 22)
        await tree.until(lambda: "while reading (58)" in tree.errors.get(path, ""))
        assert set(tree.errors) == {path}
        writes = len(tree.writes)
        await tree.until(lambda: len(tree.writes) > writes + 10)
        assert reads(tree, WARM, 21.25)
        assert tree.recorded == [path], "one record, however often it fails"
        bus.mend(WARM)
        await tree.until(lambda: path not in tree.errors and reads(tree, WARM, 22))
        assert state(tree) == "up"


async def test_unplugged_sensor_is_missed_and_then_back(bus: SimulatedBus, tree: FakeTree) -> None:
    path = P(f"{BASE}.{WARM}")
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: reads(tree, WARM, 21.25))
        bus.unplug(WARM)
        await tree.until(lambda: tree.errors.get(path) == "not on the bus")
        bus.replug(WARM)
        await tree.until(lambda: path not in tree.errors)


async def test_sensor_of_an_earlier_run_is_missed_from_the_start(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    path = P(f"{BASE}.28.0000BEDCFFFF")
    tree.set(path, {"value": 1, "at": 0})
    tree.set(P(f"{BASE}.note"), "not a sensor")
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: tree.errors.get(path) == "not on the bus")
        assert set(tree.errors) == {path}


async def test_error_of_an_earlier_run_is_resolved_by_the_first_reading(
    bus: SimulatedBus, tree: FakeTree
) -> None:
    tree.errors[P(f"{BASE}.{WARM}")] = "left behind"
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: reads(tree, WARM, 21.25) and not tree.errors)


async def test_bus_server_may_go_away_and_come_back(bus: SimulatedBus, tree: FakeTree) -> None:
    async with running(tree, "onewire.temperatures", **job(bus)) as call:
        await tree.until(lambda: state(tree) == "up")
        await bus.stop()
        await tree.until(lambda: state(tree) == "down")
        assert str(bus.port) in tree.errors[P(STATE)]
        bus.set_temperature(WARM, 23)
        await bus.start()
        await tree.until(lambda: state(tree) == "up" and reads(tree, WARM, 23))
        assert tree.errors == {}
        assert call.set_up == 2


async def test_tries_come_at_growing_intervals(bus: SimulatedBus, tree: FakeTree) -> None:
    await bus.stop()
    async with running(tree, "onewire.temperatures", **job(bus)) as call:
        await tree.until(lambda: state(tree) == "down")
        await tree.until(lambda: len(call.delays) >= 5)
        assert call.delays[:5] == [0.02, 0.04, 0.08, 0.1, 0.1]
        assert len(tree.writes) == 1, "the state is written once"


@pytest.mark.parametrize("code", [Code.BUS_SHORT, Code.BUS_TIMEOUT])
async def test_failing_bus_is_no_reason_to_miss_every_sensor(
    bus: SimulatedBus, tree: FakeTree, code: Code
) -> None:
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        bus.fail(code)
        await tree.until(lambda: state(tree) == "down")
        assert set(tree.errors) == {P(STATE)}
        bus.mend()
        await tree.until(lambda: state(tree) == "up" and not tree.errors)


@pytest.mark.parametrize("how", ["drop", "cut", "slam"])
async def test_broken_line_is_mended(bus: SimulatedBus, tree: FakeTree, how: str) -> None:
    async with running(tree, "onewire.temperatures", **job(bus)):
        await tree.until(lambda: state(tree) == "up")
        if how == "drop":
            bus.drop()
        elif how == "cut":
            bus.cut(2)
        else:
            bus.slam = True
            bus.drop()
            await tree.until(lambda: state(tree) == "down")
            bus.slam = False
        bus.set_temperature(WARM, 24)
        await tree.until(lambda: reads(tree, WARM, 24) and state(tree) == "up")


async def test_only_the_families_asked_for_are_polled(bus: SimulatedBus, tree: FakeTree) -> None:
    async with running(tree, "onewire.temperatures", **job(bus), families=["10"], base="cellar"):
        await tree.until(lambda: state(tree) == "up")
    assert {str(path) for path in tree.entries} == {"cellar.10.000010A11CE0", STATE}


async def test_stalled_queue_ends_the_run_as_a_failure(bus: SimulatedBus, tree: FakeTree) -> None:
    async def stall() -> None:
        async with running(tree, "onewire.temperatures", **job(bus)) as call:
            await tree.until(lambda: state(tree) == "up")
            call.info.put(None)
            await tree.until(lambda: False)

    with pytest.raises(ExceptionGroup) as caught:
        await stall()
    assert caught.group_contains(RuntimeError, match="too slow")
