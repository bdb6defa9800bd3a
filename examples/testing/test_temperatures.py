"""A test of the 1-wire example's thermometers, on a simulated bus."""

import pathlib

import pytest

ONEWIRE = pathlib.Path(__file__).parent.parent / "onewire"
MODULES = {f"onewire.{name}": ONEWIRE / f"{name}.py" for name in ("owserver", "bus", "follow")}
SETTINGS = {
    "base": "home.temp",
    "state": "home.bus",
    "families": ["28"],
    "interval_s": 60.0,
    "retry_s": 5.0,
    "retry_max_s": 60.0,
}


@pytest.fixture
def poll(run_script, moat_bus):
    return run_script(
        ONEWIRE / "temperatures.py",
        modules=MODULES,
        variables=["host", "port", *SETTINGS],
        host=moat_bus.host,
        port=moat_bus.port,
        data=SETTINGS,
    )


def test_thermometers_are_read_once_a_minute(poll):
    path = "home.temp.28.0000BEDC0001"
    first = poll.entries[path]
    assert first["value"] == pytest.approx(21.25, abs=0.1)
    poll.advance(60)
    assert poll.entries[path]["at"] == pytest.approx(first["at"] + 60, abs=1)


def test_thermometer_that_is_gone_has_an_error_until_it_is_back(poll, moat_bus):
    moat_bus.unplug("28.0000BEDC0001")
    poll.advance(60)
    assert poll.errors == {"home.temp.28.0000BEDC0001": "not on the bus"}
    moat_bus.replug("28.0000BEDC0001")
    poll.advance(60)
    assert poll.errors == {}
