"""The stored client against the simulated bus, and what it does when the line misbehaves."""

from __future__ import annotations

import struct
from typing import Any

import anyio
import pytest

from moat_kv.testing.onewire import Code, SimulatedBus, running_bus

pytestmark = pytest.mark.anyio

WARM = "28.0000BEDC0001"
COLD = "28.0000BEDC0002"
SINGLE = "05.0000501A4900"
DUAL = "3A.00003A2B0001"
OCTAL = "29.0000290C0001"
HUMID = "26.000026FE0001"


def at(one: Any, name: str) -> Any:
    return one.bus.device_of(name)


@pytest.fixture
async def ow(onewire: Any, bus: SimulatedBus) -> Any:
    async with onewire.bus.Bus(bus.host, bus.port, silence_s=20, patience_s=30) as client:
        yield client


async def test_devices_are_those_of_the_families_asked_for(onewire: Any, ow: Any) -> None:
    found = await ow.devices(onewire.bus.THERMOMETERS)
    assert [f"{one.family}.{one.serial}" for one in found] == [
        "10.000010A11CE0",
        HUMID,
        WARM,
        COLD,
    ]


async def test_temperature_is_that_of_the_sensor(onewire: Any, ow: Any, bus: SimulatedBus) -> None:
    bus.drift(WARM, 0)
    for celsius in (21.3125, -10.5, 0.0):
        bus.set_temperature(WARM, celsius)
        assert await ow.temperature(at(onewire, WARM)) == celsius


async def test_power_on_value_is_asked_for_once_more(
    onewire: Any, ow: Any, bus: SimulatedBus
) -> None:
    bus.drift(WARM, 0)
    bus.set_temperature(WARM, 85)
    assert await ow.temperature(at(onewire, WARM)) == 85
    assert len(bus.requests("READ", f"/{WARM}/temperature")) == 2


async def test_convert_makes_every_sensor_measure(ow: Any, bus: SimulatedBus) -> None:
    bus.drift(WARM, 0)
    bus.set_temperature(WARM, 22)
    assert float(await ow.read(f"/{WARM}/latesttemp")) == 85
    await ow.convert()
    assert float(await ow.read(f"/{WARM}/latesttemp")) == 22


@pytest.mark.parametrize(
    ("name", "channel", "outputs"),
    [
        pytest.param(SINGLE, "PIO", [True], id="05"),
        pytest.param(DUAL, "B", [False, True], id="3A"),
        pytest.param(OCTAL, "3", [False] * 3 + [True] + [False] * 4, id="29"),
    ],
)
async def test_switch_keeps_what_is_written(
    onewire: Any, ow: Any, bus: SimulatedBus, name: str, channel: str, outputs: list[bool]
) -> None:
    device = at(onewire, name)
    await ow.switch(device, channel, True)
    assert bus.outputs(name) == outputs
    assert list((await ow.outputs(device)).values()) == outputs
    await ow.switch(device, channel, False)
    assert not any((await ow.outputs(device)).values())


async def test_presence_follows_the_plug(ow: Any, bus: SimulatedBus) -> None:
    assert await ow.present(f"/{WARM}")
    bus.unplug(WARM)
    assert not await ow.present(f"/{WARM}")


async def test_error_names_the_path_and_the_code(onewire: Any, ow: Any, bus: SimulatedBus) -> None:
    bus.fail(Code.READ_COMMUNICATION, WARM)
    with pytest.raises(onewire.bus.OwError, match=f"{WARM}.*while reading") as caught:
        await ow.temperature(at(onewire, WARM))
    assert caught.value.code == 58
    bus.mend(WARM)
    await ow.temperature(at(onewire, WARM))
    assert bus.accepted == 1


async def test_one_connection_serves_many_requests(ow: Any, bus: SimulatedBus) -> None:
    for _ in range(50):
        await ow.dir("/")
    assert bus.accepted == 1


async def test_refused_persistence_makes_a_connection_a_request(ow: Any, bus: SimulatedBus) -> None:
    bus.persistence = False
    for _ in range(3):
        await ow.dir("/")
    assert bus.accepted == 3


async def test_dropped_connection_is_replaced_at_once(ow: Any, bus: SimulatedBus) -> None:
    await ow.dir("/")
    bus.drop()
    await bus.until(lambda: bus.connections == 0)
    assert await ow.dir("/")
    assert bus.accepted == 2


async def test_connection_cut_in_an_answer_is_reported_and_then_replaced(
    onewire: Any, ow: Any, bus: SimulatedBus
) -> None:
    bus.cut()
    with pytest.raises(onewire.bus.OwGone):
        await ow.dir("/")
    assert await ow.dir("/")


async def test_server_that_is_away_is_reported_and_found_again_on_its_port(
    onewire: Any, ow: Any, bus: SimulatedBus
) -> None:
    await ow.dir("/")
    port = bus.port
    await bus.stop()
    for _ in range(2):
        with pytest.raises(onewire.bus.OwGone, match=f"port {port}: connection refused"):
            await ow.dir("/")
    await bus.start()
    assert bus.port == port
    assert await ow.dir("/")


async def test_refusal_leaves_a_kept_connection_alone(
    onewire: Any, ow: Any, bus: SimulatedBus
) -> None:
    await ow.dir("/")
    await bus.refuse()
    assert await ow.dir("/")
    async with onewire.bus.Bus(bus.host, bus.port) as other:
        with pytest.raises(onewire.bus.OwGone):
            await other.dir("/")


async def test_hang_up_on_every_connection_is_reported(
    onewire: Any, ow: Any, bus: SimulatedBus
) -> None:
    bus.slam = True
    with pytest.raises(onewire.bus.OwGone):
        await ow.dir("/")
    assert bus.accepted == 1


async def test_silence_ends_a_request_in_bounded_time(onewire: Any, bus: SimulatedBus) -> None:
    bus.pings = False
    bus.hold()
    async with onewire.bus.Bus(bus.host, bus.port, silence_s=0.2) as ow:
        with anyio.fail_after(30), pytest.raises(onewire.bus.OwGone, match="in time"):
            await ow.dir("/")
        assert bus.accepted == 1
        bus.release()
        ow.silence_s = 20
        assert await ow.dir("/")


async def test_signs_of_life_keep_a_slow_request_alive(
    onewire: Any, bus: SimulatedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each begins the time of silence anew, which is counted here rather than measured."""
    silence_s, times, fail_after = 20.5, 0, anyio.fail_after

    def counted(delay: float | None, shield: bool = False) -> Any:
        nonlocal times
        times += delay == silence_s
        return fail_after(delay, shield)

    monkeypatch.setattr(anyio, "fail_after", counted)
    bus.drift(WARM, 0)
    bus.ping_s = 0.02
    bus.hold()
    got: list[float] = []
    async with onewire.bus.Bus(bus.host, bus.port, silence_s=silence_s) as ow:

        async def ask() -> None:
            got.append(await ow.temperature(at(onewire, WARM)))

        with fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                while times < 10:
                    await anyio.sleep(0.01)
                assert got == []
                bus.release()
    assert got == [21.25]
    assert bus.accepted == 1


async def test_signs_of_life_alone_do_not_keep_a_request_for_ever(
    onewire: Any, bus: SimulatedBus
) -> None:
    bus.ping_s = 0.1
    bus.hold()
    async with onewire.bus.Bus(bus.host, bus.port, silence_s=1.5, patience_s=0.5) as ow:
        with anyio.fail_after(30), pytest.raises(onewire.bus.OwGone):
            await ow.dir("/")


async def test_cancelled_request_leaves_no_half_answer_behind(
    onewire: Any, ow: Any, bus: SimulatedBus
) -> None:
    bus.drift(WARM, 0)
    bus.delay(30, COLD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ow.temperature, at(onewire, COLD))
        await bus.until(lambda: bus.connections == 1)
        tasks.cancel_scope.cancel()
    assert await ow.temperature(at(onewire, WARM)) == 21.25


async def test_many_tasks_share_one_client(onewire: Any, ow: Any, bus: SimulatedBus) -> None:
    bus.drift(WARM, 0)
    bus.drift(COLD, 0)
    got: list[tuple[str, float]] = []

    async def ask(name: str) -> None:
        got.append((name, await ow.temperature(at(onewire, name))))

    async with anyio.create_task_group() as tasks:
        for name in [WARM, COLD] * 10:
            tasks.start_soon(ask, name)
    assert sorted(got) == [(WARM, 21.25)] * 10 + [(COLD, 18.5)] * 10


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="http"),
        pytest.param(struct.pack("!6i", 0, 2**31 - 1, 0, 0, 0, 0), id="huge"),
        pytest.param(struct.pack("!6i", 7, 0, 0, 0, 0, 0), id="version"),
    ],
)
async def test_peer_that_is_no_owserver_is_reported(onewire: Any, answer: bytes) -> None:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with onewire.bus.Bus("127.0.0.1", port) as ow:
            with pytest.raises(onewire.bus.OwGone):
                await ow.dir("/")
        tasks.cancel_scope.cancel()


async def test_empty_bus_lists_nothing(onewire: Any) -> None:
    async with running_bus([]) as empty, onewire.bus.Bus(empty.host, empty.port) as ow:
        assert await ow.dir("/") == []
        assert await ow.devices(onewire.bus.THERMOMETERS) == []
