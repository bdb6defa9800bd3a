"""The small procedures of the demonstration, one for each kind of job."""

from __future__ import annotations

import pytest

from moat_kv.testing.onewire import SimulatedBus, running_bus
from moat_kv_runner import messages
from tests.onewire.fake_runner import FakeTree, finish, running

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("onewire")]

OLD = "10.000010A11CE0"
COLD = "28.0000BEDC0002"


@pytest.fixture
def tree() -> FakeTree:
    return FakeTree()


@pytest.mark.parametrize(("sensor", "celsius"), [("", 48.5), (COLD, 18.5)], ids=["first", "named"])
async def test_one_thermometer_is_read_once(
    bus: SimulatedBus, tree: FakeTree, sensor: str, celsius: float
) -> None:
    bus.drift(COLD, 0)
    assert await finish(tree, "demo.read_one", port=bus.port, sensor=sensor) == celsius
    assert tree.value("demo.reading")["value"] == celsius
    await bus.until(lambda: bus.connections == 0)


@pytest.mark.parametrize("sensor", ["", "kitchen"], ids=["empty bus", "bad name"])
async def test_missing_thermometer_is_a_recorded_error(tree: FakeTree, sensor: str) -> None:
    async with running_bus([]) as empty:
        with pytest.raises(ExceptionGroup) as caught:
            await finish(tree, "demo.read_one", port=empty.port, sensor=sensor)
    assert caught.group_contains(messages.ErrorRecorded)


async def test_radio_counts_and_tells_the_groups_state(tree: FakeTree) -> None:
    async with running(tree, "demo.radio", folder="demo", interval_s=0.01) as call:
        await tree.until(lambda: (tree.value("demo.radio") or {}).get("count", 0) >= 3)
        assert tree.value("demo.radio")["node"] == "n1"
        assert tree.value("demo.radio")["fence"] == 1
        assert tree.value("demo.group")["state"] == "detached"
        call.info.put(messages.CompleteState(messages.GroupSeen(members=("n1", "n2"), nodes=2)))
        await tree.until(lambda: tree.value("demo.group")["state"] == "complete")


async def test_each_node_reports_its_load_in_an_entry_of_its_own(tree: FakeTree) -> None:
    async with running(tree, "demo.load", folder="demo", interval_s=0.01):
        await tree.until(lambda: len(tree.writes) >= 3)
    assert len(tree.value("demo.load.n1")["load"]) == 3
