"""The simulated bus itself: what it answers, byte by byte where the original was seen to."""

from __future__ import annotations

from typing import Any

import pytest

from moat_kv.testing.onewire import Code, names
from moat_kv.testing.onewire.answers import Bus
from moat_kv.testing.onewire.protocol import Kind, Reply, Request
from moat_kv.testing.onewire.server import DEFAULT_DEVICES, SimulatedBus, plug_in, read_devices

THERMO = "28.4AEC29CDBAAB"
OLD = "10.67C6697351FF"
SINGLE = "05.F2FBE3467CC2"
DUAL = "3A.54F81BE8E78D"
OCTAL = "29.765A2E63339F"
HUMID = "26.C99A66320DB7"


@pytest.fixture
def sim() -> SimulatedBus:
    found = SimulatedBus(clock=lambda: 0.0)
    for name in (OLD, THERMO, SINGLE, DUAL, OCTAL, HUMID):
        found.add(name)
    return found


def ask(bus: Bus, kind: int, path: str | None, data: bytes = b"", **facts: Any) -> list[Reply]:
    given = {"flags": 0x10A, "size": 65536, "offset": 0, **facts}
    return bus.answer(Request(kind=kind, path=path, data=data, **given))


def read(bus: Bus, path: str, **facts: Any) -> bytes:
    (reply,) = ask(bus, Kind.READ, path, **facts)
    assert reply.ret == len(reply.payload) == reply.size
    return reply.payload


def code(replies: list[Reply]) -> int:
    (reply,) = replies
    assert reply.payload == b""
    return -reply.ret


# As seen from owserver 3.2p4 with --mock


@pytest.mark.parametrize(
    ("name", "check"),
    [(OLD, 0x8D), (THERMO, 0x95), (SINGLE, 0xAF), (DUAL, 0xD1), (OCTAL, 0x2D), (HUMID, 0x52)],
)
def test_check_byte_is_the_one_that_owserver_makes(name: str, check: int) -> None:
    assert names.address(name)[-1] == check


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (0, "28.4AEC29CDBAAB"),
        (1, "284AEC29CDBAAB"),
        (2, "28.4AEC29CDBAAB.95"),
        (3, "28.4AEC29CDBAAB95"),
        (4, "284AEC29CDBAAB.95"),
        (5, "284AEC29CDBAAB95"),
    ],
)
def test_names_are_read_and_written_in_all_six_formats(
    sim: SimulatedBus, style: int, text: str
) -> None:
    assert names.format_name(THERMO, style) == text
    assert names.parse_name(text) == THERMO
    (listing,) = ask(sim, Kind.DIRALL, "/", flags=0x100 | style << 24)
    assert f"/{text}".encode() in listing.payload.split(b",")
    assert read(sim, f"/{text}/type") == b"DS18B20"


def test_wrong_check_byte_is_not_found(sim: SimulatedBus) -> None:
    assert names.parse_name("28.4AEC29CDBAAB.96") is None
    assert code(ask(sim, Kind.READ, "/28.4AEC29CDBAAB.96/type")) == Code.NOT_FOUND


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (f"{THERMO}/address", b"284AEC29CDBAAB95"),
        (f"{THERMO}/family", b"28"),
        (f"{THERMO}/id", b"4AEC29CDBAAB"),
        (f"{THERMO}/crc8", b"95"),
        (f"{THERMO}/power", b"1"),
        (f"{OLD}/type", b"DS18S20"),
        (f"{OLD}/temperature", b"          20"),
        (f"{DUAL}/PIO.ALL", b"0,0"),
        (f"{DUAL}/PIO.BYTE", b"           0"),
        (f"{OCTAL}/sensed.ALL", b"1,1,1,1,1,1,1,1"),
        ("simultaneous/temperature", b"0"),
        ("structure/28/temperature", b"t,000000,000001,ro,000012,v,"),
        ("structure/05/PIO", b"y,000000,000001,rw,000001,s,"),
        ("structure/3A/PIO.A", b"y,000000,000002,rw,000001,v,"),
        ("structure/3A/PIO.ALL", b"y,-000001,000002,rw,000003,v,"),
        ("structure/29/PIO.BYTE", b"y,-000002,000008,rw,000012,s,"),
        ("structure/26/HIH4000/humidity", b"f,000000,000001,ro,000012,v,"),
        ("structure/10/type", b"a,000000,000001,ro,000032,f,"),
    ],
)
def test_file_reads_as_owserver_prints_it(sim: SimulatedBus, path: str, text: bytes) -> None:
    assert read(sim, f"/{path}") == text
    assert read(sim, f"/uncached//{path}") == text


@pytest.mark.parametrize(
    ("kind", "path", "data", "want"),
    [
        (Kind.READ, "/", b"", 21),
        (Kind.READ, f"/{OLD}", b"", 21),
        (Kind.READ, f"/{OLD}/nope", b"", 1),
        (Kind.READ, "/10.111111111111/temperature", b"", 1),
        (Kind.READ, f"/bus.7/{OLD}/temperature", b"", 1),
        (Kind.READ, f"/{DUAL}/PIO", b"", 1),
        (Kind.READ, f"/{DUAL}/PIO.C", b"", 1),
        (Kind.READ, "/structure/26/HIH4000", b"", 21),
        (Kind.READ, "/structure/77/x", b"", 1),
        (Kind.READ, None, b"", 74),
        (Kind.DIRALL, f"/{OLD}/temperature", b"", 20),
        (Kind.DIR, "/nonesuch", b"", 1),
        (Kind.GET, "/nonesuch", b"", 1),
        (Kind.PRESENT, "/10.111111111111", b"", 1),
        (Kind.WRITE, f"/{SINGLE}/PIO", b"x", 22),
        (Kind.WRITE, f"/{SINGLE}/PIO", b"", 14),
        (Kind.WRITE, f"/{DUAL}/PIO.ALL", b"1", 22),
        (Kind.WRITE, f"/{OLD}/temperature", b"1", 95),
        (Kind.WRITE, f"/{SINGLE}/sensed", b"1", 95),
        (Kind.WRITE, f"/{OLD}", b"1", 21),
        (Kind.WRITE, f"/{THERMO}/tempres", b"abc", 22),
        (Kind.SIZE, f"/{OLD}/temperature", b"", 42),
        (99, "/", b"", 42),
        (0, "/", b"", 42),
    ],
)
def test_wrong_request_has_the_error_that_owserver_gives(
    sim: SimulatedBus, kind: int, path: str | None, data: bytes, want: int
) -> None:
    assert code(ask(sim, kind, path, data)) == want


@pytest.mark.parametrize(
    ("size", "offset", "part"),
    [(4, 0, b"1067"), (4, 3, b"7C66"), (4, 16, b""), (4, 20, b""), (65536, 12, b"FF8D")],
)
def test_part_of_a_file_can_be_read(sim: SimulatedBus, size: int, offset: int, part: bytes) -> None:
    assert read(sim, f"/{OLD}/address", size=size, offset=offset) == part


@pytest.mark.parametrize("size", [0, -1])
def test_read_of_no_bytes_is_an_error(sim: SimulatedBus, size: int) -> None:
    assert code(ask(sim, Kind.READ, f"/{OLD}/address", size=size)) == Code.BAD_SIZE


@pytest.mark.parametrize(
    ("scale", "text"),
    [(0, b"          30"), (1, b"          86"), (2, b"      303.15"), (3, b"      545.67")],
)
def test_temperatures_come_in_the_scale_asked_for(
    sim: SimulatedBus, scale: int, text: bytes
) -> None:
    flags = 0x100 | scale << 16
    (done,) = ask(sim, Kind.WRITE, f"/{OLD}/temphigh", text.strip(), flags=flags)
    assert (done.ret, done.size) == (0, len(text.strip()))
    assert read(sim, f"/{OLD}/temphigh", flags=flags) == text
    assert read(sim, f"/{OLD}/temphigh") == b"          30"


def test_listing_comes_line_by_line_or_at_once(sim: SimulatedBus) -> None:
    *lines, last = ask(sim, Kind.DIR, f"/{SINGLE}")
    assert (last.payload, last.ret) == (b"", 0)
    assert all(len(line.payload) == line.size + 1 for line in lines)
    one_by_one = [line.payload.rstrip(b"\0") for line in lines]
    (whole,) = ask(sim, Kind.DIRALL, f"/{SINGLE}")
    assert whole.payload == b",".join(one_by_one) + b"\0"
    assert whole.size == len(whole.payload) - 1
    assert one_by_one[0] == f"/{SINGLE}/PIO".encode()
    (got,) = ask(sim, Kind.GET, f"/{SINGLE}")
    assert got == whole


def test_slashes_mark_folders(sim: SimulatedBus) -> None:
    (root,) = ask(sim, Kind.DIRALLSLASH, "/")
    assert f"/{OLD}/".encode() in root.payload
    (device,) = ask(sim, Kind.GETSLASH, f"/{HUMID}")
    assert f"/{HUMID}/HIH4000/,".encode() in device.payload
    assert f"/{HUMID}/VAD,".encode() in device.payload


def test_root_lists_system_folders_only_when_asked(sim: SimulatedBus) -> None:
    (plain,) = ask(sim, Kind.DIRALL, "/", flags=0x100)
    assert len(plain.payload.split(b",")) == 6
    assert plain.offset == 0xC007
    (full,) = ask(sim, Kind.DIRALL, "/", flags=0x102)
    assert b"/bus.0,/uncached,/structure,/simultaneous,/alarm" in full.payload


def test_presence_tells_the_address(sim: SimulatedBus) -> None:
    (there,) = ask(sim, Kind.PRESENT, f"/{OLD}/temperature")
    assert there.payload == bytes.fromhex("1067C6697351FF8D")
    (folder,) = ask(sim, Kind.PRESENT, "/structure/28")
    assert folder.payload == bytes(8)


# Devices


def test_resolution_rounds_the_reading(sim: SimulatedBus) -> None:
    sim.set_temperature(THERMO, 20.3)
    assert float(read(sim, f"/{THERMO}/temperature")) == 20.3125
    ask(sim, Kind.WRITE, f"/{THERMO}/tempres", b"9")
    assert float(read(sim, f"/{THERMO}/temperature")) == 20.5
    assert float(read(sim, f"/{THERMO}/temperature12")) == 20.3125


def test_temperature_drifts_with_the_clock() -> None:
    now = 0.0
    sim = SimulatedBus(clock=lambda: now)
    sim.add(OLD)
    sim.set_temperature(OLD, 20)
    sim.drift(OLD, 0.5)
    now = 8.0
    assert float(read(sim, f"/{OLD}/temperature")) == 24
    sim.drift(OLD, -1)
    now = 10.0
    assert float(read(sim, f"/{OLD}/temperature")) == 22


def test_temperature_outside_the_limits_is_an_alarm(sim: SimulatedBus) -> None:
    def alarms() -> bytes:
        (reply,) = ask(sim, Kind.DIRALL, "/alarm")
        return reply.payload

    sim.set_temperature(OLD, 31)
    ask(sim, Kind.WRITE, f"/{OLD}/temphigh", b"30")
    assert alarms() == b""
    ask(sim, Kind.WRITE, "/simultaneous/temperature", b"1")
    assert alarms() == f"/alarm/{OLD}\0".encode()
    sim.set_temperature(OLD, 29)
    read(sim, f"/{OLD}/temperature")
    assert alarms() == b""


def test_pin_is_low_while_either_side_pulls_it(sim: SimulatedBus) -> None:
    ask(sim, Kind.WRITE, f"/{DUAL}/PIO.A", b"1")
    assert read(sim, f"/{DUAL}/sensed.ALL") == b"0,1"
    sim.set_input(DUAL, False, 1)
    assert read(sim, f"/{DUAL}/sensed.BYTE").strip() == b"0"
    assert read(sim, f"/{DUAL}/PIO.ALL") == b"1,0"


def test_byte_and_all_set_every_channel(sim: SimulatedBus) -> None:
    ask(sim, Kind.WRITE, f"/{OCTAL}/PIO.BYTE", b"85")
    assert read(sim, f"/{OCTAL}/PIO.ALL") == b"1,0,1,0,1,0,1,0"
    assert read(sim, f"/{OCTAL}/latch.BYTE").strip() == b"85"
    ask(sim, Kind.WRITE, f"/{OCTAL}/latch.BYTE", b"0")
    assert read(sim, f"/{OCTAL}/latch.BYTE").strip() == b"0"
    ask(sim, Kind.WRITE, f"/{OCTAL}/PIO.ALL", b"0,0,0,0,0,0,0,1")
    assert read(sim, f"/{OCTAL}/PIO.BYTE").strip() == b"128"


def test_replug_keeps_what_was_written_unless_power_was_lost(sim: SimulatedBus) -> None:
    ask(sim, Kind.WRITE, f"/{SINGLE}/PIO", b"1")
    sim.unplug(SINGLE)
    assert code(ask(sim, Kind.READ, f"/{SINGLE}/PIO")) == Code.NOT_FOUND
    sim.replug(SINGLE)
    assert read(sim, f"/{SINGLE}/PIO") == b"1"
    sim.unplug(SINGLE)
    sim.replug(SINGLE, power_lost=True)
    assert read(sim, f"/{SINGLE}/PIO") == b"0"


def test_devices_are_seen_on_their_own_bus(sim: SimulatedBus) -> None:
    sim.add("28.000000000001", bus=1)
    assert read(sim, "/bus.1/28.000000000001/family") == b"28"
    assert code(ask(sim, Kind.READ, "/bus.0/28.000000000001/family")) == Code.NOT_FOUND
    (listing,) = ask(sim, Kind.DIRALL, "/bus.1")
    assert listing.payload == b"/bus.1/28.000000000001,/bus.1/simultaneous,/bus.1/alarm\0"


def test_removed_device_is_forgotten_with_its_faults(sim: SimulatedBus) -> None:
    sim.fail(Code.IO, OLD)
    sim.remove(OLD)
    assert code(ask(sim, Kind.READ, f"/{OLD}/family")) == Code.NOT_FOUND
    sim.add(OLD)
    assert read(sim, f"/{OLD}/temperature")


# Faults


def test_failing_device_leaves_the_others_alone(sim: SimulatedBus) -> None:
    sim.fail(Code.DEVICE, OLD)
    assert code(ask(sim, Kind.READ, f"/{OLD}/temperature")) == Code.DEVICE
    assert read(sim, f"/{OLD}/family") == b"10"
    assert read(sim, f"/{THERMO}/temperature")


def test_failing_bus_fails_all_that_uses_it(sim: SimulatedBus) -> None:
    sim.fail(Code.BUS_SHORT)
    for kind, path in [
        (Kind.READ, f"/{THERMO}/temperature"),
        (Kind.DIRALL, "/"),
        (Kind.DIR, "/bus.0"),
        (Kind.WRITE, "/simultaneous/temperature"),
        (Kind.PRESENT, f"/{OLD}"),
    ]:
        assert code(ask(sim, kind, path, b"1")) == Code.BUS_SHORT
    assert read(sim, "/structure/28/type")
    sim.mend()
    assert read(sim, f"/{THERMO}/temperature")


def test_failure_can_be_limited_to_writes_and_in_number(sim: SimulatedBus) -> None:
    sim.fail(Code.WRITE_COMMUNICATION, SINGLE, operations=["write"], times=2)
    assert read(sim, f"/{SINGLE}/PIO") == b"0"
    for _ in range(2):
        assert code(ask(sim, Kind.WRITE, f"/{SINGLE}/PIO", b"1")) == 67
    assert read(sim, f"/{SINGLE}/PIO") == b"0"
    ask(sim, Kind.WRITE, f"/{SINGLE}/PIO", b"1")
    assert read(sim, f"/{SINGLE}/PIO") == b"1"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda sim: sim.add("28.XYZ"), id="name"),
        pytest.param(lambda sim: sim.add("77.000000000000"), id="family"),
        pytest.param(lambda sim: sim.add(OLD), id="twice"),
        pytest.param(lambda sim: sim.unplug("28.000000000000"), id="unknown"),
        pytest.param(lambda sim: sim.set_temperature(SINGLE, 1), id="no sensor"),
        pytest.param(lambda sim: sim.set_output(OLD, True), id="no switch"),
        pytest.param(lambda sim: sim.set_output(DUAL, True, 2), id="channel"),
        pytest.param(lambda sim: sim.fail(0), id="code"),
        pytest.param(lambda sim: sim.fail(5, operations=["erase"]), id="operation"),
        pytest.param(lambda sim: sim.set_measured(HUMID, "pressure", 1), id="measured"),
        pytest.param(lambda sim: plug_in(sim, [{"name": "28.000000000000", "x": 1}]), id="key"),
        pytest.param(lambda sim: read_devices("{}"), id="no list"),
    ],
)
def test_wrong_use_is_refused_with_its_reason(sim: SimulatedBus, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong(sim)


def test_default_devices_have_all_families(sim: SimulatedBus) -> None:
    default = SimulatedBus()
    plug_in(default, DEFAULT_DEVICES)
    assert {name[:2] for name in default.all_names()} == {"05", "10", "26", "28", "29", "3A"}
