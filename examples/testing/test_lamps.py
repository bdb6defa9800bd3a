"""A test of `lamps.py`: `pytest examples/testing`, wherever moat-kv is installed."""

import pytest


@pytest.fixture
def lamps(run_script):
    return run_script("lamps.py", entries={"home.kitchen": {"lamps": 3}}, watts=7)


def test_power_follows_the_lamps(lamps, moat_box):
    assert lamps.entries["home.power"] == 21
    moat_box.set("home.kitchen", {"lamps": 5})
    assert lamps.entries["home.power"] == 35
    assert lamps.messages_of("ReadyMsg")[-1].msg == 1


def test_reminder_comes_after_an_hour(lamps, moat_box):
    lamps.advance(3599)
    assert lamps.sent == []
    lamps.advance(1)
    assert lamps.sent == [("home.bell", "the lamps are on")]


def test_reminder_does_not_come_when_the_lamps_go_off(lamps, moat_box):
    lamps.advance(1800)
    moat_box.set("home.kitchen", {"lamps": 0})
    lamps.advance(24 * 3600)
    assert lamps.sent == []


def test_entry_that_is_no_mapping_is_a_failure(run_script):
    run = run_script("lamps.py", entries={"home.kitchen": "dark"}, watts=7)
    assert isinstance(run.error, AttributeError)
