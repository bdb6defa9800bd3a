"""Real peers: the stored client and procedures with owserver, its tools with the simulated bus."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from moat_kv.testing import ports
from moat_kv.testing.onewire import SimulatedBus, running_bus
from moat_kv.testing.onewire.protocol import Kind
from tests.onewire import real
from tests.onewire.fake_runner import FakeTree, running

pytestmark = pytest.mark.anyio

WARM = "28.0000BEDC0001"
SINGLE = "05.0000501A4900"

#: The devices of `--mock=10,28,05,3A,29,26`: the C library's first random numbers.
MOCKED = [
    "10.67C6697351FF",
    "28.4AEC29CDBAAB",
    "05.F2FBE3467CC2",
    "3A.54F81BE8E78D",
    "29.765A2E63339F",
    "26.C99A66320DB7",
]


@pytest.fixture(scope="module")
def tester() -> Iterator[int]:
    with real.owserver(f"--tester={real.FAMILIES}") as port:
        yield port


@pytest.fixture(scope="module")
def mock() -> Iterator[int]:
    with real.owserver(f"--mock={real.FAMILIES}") as port:
        yield port


# Our client, their server


async def test_client_reads_the_testers_thermometers(onewire: Any, tester: int) -> None:
    async with onewire.bus.Bus("127.0.0.1", tester) as ow:
        found = await ow.devices(onewire.bus.THERMOMETERS)
        await ow.convert()
        got = {one.family: await ow.temperature(one) for one in found}
    assert got == {"10": 1.6, "26": 4.3, "28": 4.1}


async def test_client_reads_and_writes_the_testers_switches(onewire: Any, tester: int) -> None:
    async with onewire.bus.Bus("127.0.0.1", tester) as ow:
        found = await ow.devices(onewire.bus.CHANNELS)
        outputs = {one.family: await ow.outputs(one) for one in found}
        assert {family: len(all_of) for family, all_of in outputs.items()} == {
            "05": 1,
            "29": 8,
            "3A": 2,
        }
        for one in found:
            for channel in outputs[one.family]:
                await ow.switch(one, channel, True)


async def test_mock_keeps_what_the_client_writes(onewire: Any, mock: int) -> None:
    device = onewire.bus.device_of("05.F2FBE3467CC2")
    async with onewire.bus.Bus("127.0.0.1", mock) as ow:
        for on in (True, False, True):
            await ow.switch(device, "PIO", on)
            assert await ow.read(device.path("PIO")) == (b"1" if on else b"0")


async def test_client_names_the_error_of_owserver(onewire: Any, tester: int) -> None:
    async with onewire.bus.Bus("127.0.0.1", tester) as ow:
        with pytest.raises(onewire.bus.OwError, match="no such file or device") as caught:
            await ow.read("/28.111111111111/temperature")
        assert caught.value.code == 1
        assert not await ow.present("/28.111111111111")


async def test_client_lives_without_persistence(onewire: Any) -> None:
    with real.owserver("--tester=28", "--no_persistence") as port:
        async with onewire.bus.Bus("127.0.0.1", port) as ow:
            for _ in range(3):
                assert len(await ow.devices(onewire.bus.THERMOMETERS)) == 1


async def test_mock_makes_readings_in_its_range(onewire: Any, mock: int) -> None:
    async with onewire.bus.Bus("127.0.0.1", mock) as ow:
        for one in await ow.devices(onewire.bus.THERMOMETERS):
            assert 0 <= await ow.temperature(one) <= 100


# Our procedures, their server


async def test_thermometers_outlive_a_killed_owserver(onewire: Any) -> None:
    port = ports.free_port()
    tree = FakeTree()
    job: dict[str, Any] = {"port": port, "interval_s": 0.05, "retry_s": 0.05, "retry_max_s": 0.2}

    def state() -> str | None:
        found = tree.value("home.onewire.state.temperatures")
        return None if found is None else found["state"]

    async with running(tree, "onewire.temperatures", **job):
        await tree.until(lambda: state() == "down")
        with real.owserver("--tester=10,28", port=port):
            await tree.until(lambda: state() == "up")
        await tree.until(lambda: state() == "down")
        with real.owserver("--tester=10,28", port=port):
            await tree.until(lambda: state() == "up")
    values = sorted(value["value"] for value, _ in tree.entries.values() if "value" in value)
    assert values == [1.6, 4.1]
    assert tree.errors == {}


async def test_switches_follow_the_tester(onewire: Any, tester: int) -> None:
    tree = FakeTree()
    async with running(tree, "onewire.switches", port=tester, interval_s=0.05):
        await tree.until(lambda: tree.value("home.onewire.state.switches") is not None)
    switches = {
        str(path[3:]): value for path, (value, _) in tree.entries.items() if path[2] == "switch"
    }
    assert len(switches) == 11
    assert [switches[f"29.000029D60400.{i}"] for i in range(8)] == [True, False] * 4
    assert tree.errors == {}


# Their tools, our bus


async def tool(program: str, bus: SimulatedBus, *arguments: str, ok: bool = True) -> str:
    command = [real.need(program), "-s", f"{bus.host}:{bus.port}", *arguments]
    with anyio.fail_after(30):
        done = await anyio.run_process(command, check=False)
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout.decode()


async def test_owdir_lists_the_simulated_bus(bus: SimulatedBus) -> None:
    listed = (await tool("owdir", bus, "/")).split()
    assert listed[:7] == [f"/{name}" for name in bus.all_names()]
    assert "/bus.0" in listed
    assert f"/{WARM}/temperature" in (await tool("owdir", bus, f"/{WARM}")).split()


async def test_owread_reads_the_simulated_bus(bus: SimulatedBus) -> None:
    bus.drift(WARM, 0)
    bus.set_temperature(WARM, 25)
    assert await tool("owread", bus, f"/{WARM}/temperature") == "          25"
    assert await tool("owread", bus, "-F", f"/{WARM}/temperature") == "          77"
    assert await tool("owread", bus, "--start=2", "--size=4", f"/{WARM}/address") == "0000"


async def test_owwrite_writes_to_the_simulated_bus(bus: SimulatedBus) -> None:
    await tool("owwrite", bus, f"/{SINGLE}/PIO", "1")
    assert bus.outputs(SINGLE) == [True]
    assert await tool("owget", bus, f"/{SINGLE}/PIO") == "1"
    await tool("owwrite", bus, f"/{WARM}/temperature", "1", ok=False)


async def test_owpresent_follows_the_plug(bus: SimulatedBus) -> None:
    assert await tool("owpresent", bus, f"/{WARM}") == "1"
    bus.unplug(WARM)
    assert await tool("owpresent", bus, f"/{WARM}", ok=False) == "0"


async def test_tool_waits_for_a_slow_answer(bus: SimulatedBus) -> None:
    bus.drift(WARM, 0)
    bus.delay(0.3, WARM)
    assert await tool("owread", bus, f"/{WARM}/temperature") == "       21.25"


# Side by side


async def exchange(port: int, kind: int, path: str, data: bytes) -> list[tuple[Any, ...]]:
    """One request by hand; every reply as return value, flags, size, offset and payload."""
    payload = path.encode() + b"\0" + data
    size = len(data) if kind == Kind.WRITE else 65536
    request = struct.pack("!6i", 0, len(payload), kind, 0x100, size, 0) + payload
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request)
        with anyio.fail_after(30):
            try:
                while True:
                    received += await stream.receive()
            except anyio.EndOfStream:
                pass
    replies: list[tuple[Any, ...]] = []
    while received:
        _, length, ret, flags, told, offset = struct.unpack_from("!6i", received)
        if length >= 0:
            replies.append((ret, flags, told, offset, received[24 : 24 + length]))
        received = received[24 + max(length, 0) :]
    return replies


COMPARED = [
    (Kind.NOP, "/", b""),
    (Kind.SIZE, "/", b""),
    (99, "/", b""),
    *((Kind.READ, f"/{name}/{leaf}", b"") for name in MOCKED for leaf in ("type", "address", "id")),
    *((Kind.PRESENT, f"/{name}", b"") for name in MOCKED),
    (Kind.READ, "/", b""),
    (Kind.READ, "/28.4AEC29CDBAAB.95/family", b""),
    (Kind.READ, "/284AEC29CDBAAB/crc8", b""),
    (Kind.READ, "/bus.0/28.4AEC29CDBAAB/r_address", b""),
    (Kind.READ, "/28.4AEC29CDBAAB/nope", b""),
    (Kind.READ, "/28.111111111111/type", b""),
    (Kind.READ, "/structure/28/temperature", b""),
    (Kind.READ, "/structure/28/tempres", b""),
    (Kind.READ, "/structure/05/PIO", b""),
    (Kind.READ, "/structure/3A/PIO.BYTE", b""),
    (Kind.READ, "/structure/29/sensed.ALL", b""),
    (Kind.READ, "/structure/26/HIH4000/humidity", b""),
    (Kind.DIRALL, "/05.F2FBE3467CC2", b""),
    (Kind.DIR, "/05.F2FBE3467CC2", b""),
    (Kind.GETSLASH, "/3A.54F81BE8E78D", b""),
    (Kind.DIRALL, "/05.F2FBE3467CC2/PIO", b""),
    (Kind.DIRALL, "/nope", b""),
    (Kind.WRITE, "/05.F2FBE3467CC2/PIO", b"1"),
    (Kind.WRITE, "/05.F2FBE3467CC2/PIO", b"yes"),
    (Kind.WRITE, "/05.F2FBE3467CC2/PIO", b"x"),
    (Kind.WRITE, "/05.F2FBE3467CC2/PIO", b""),
    (Kind.WRITE, "/05.F2FBE3467CC2/sensed", b"1"),
    (Kind.WRITE, "/3A.54F81BE8E78D/PIO.ALL", b"1"),
    (Kind.WRITE, "/3A.54F81BE8E78D/PIO.ALL", b"1,0"),
    (Kind.WRITE, "/29.765A2E63339F/PIO.BYTE", b"85"),
    (Kind.WRITE, "/28.4AEC29CDBAAB/tempres", b"abc"),
    (Kind.WRITE, "/simultaneous/temperature", b"1"),
    (Kind.WRITE, "/", b"1"),
]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # what is compared is bytes
async def test_simulated_bus_answers_like_owserver(mock: int) -> None:
    async with running_bus({"name": name} for name in MOCKED) as bus:
        for kind, path, data in COMPARED:
            theirs = await exchange(mock, kind, path, data)
            ours = await exchange(bus.port, kind, path, data)
            assert ours == theirs, (kind, path, data)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_simulated_root_has_the_devices_that_owserver_has(mock: int) -> None:
    async with running_bus({"name": name} for name in MOCKED) as bus:
        both = [await exchange(port, Kind.DIRALL, "/", b"") for port in (mock, bus.port)]
    listed = [sorted(payload.rstrip(b"\0").split(b",")) for ((*_, payload),) in both]
    assert listed[0] == listed[1] == sorted(f"/{name}".encode() for name in MOCKED)
    assert [offset for ((_, _, _, offset, _),) in both] == [0xC007] * 2
