"""`apply`: the step between a commit and the world, which may refuse or correct."""

from __future__ import annotations

import logging

import anyio
import anyio.lowlevel
import pytest

from moat_kv.state import StaleModel, State, StateModel, grounds, settle


class Heater(StateModel):
    """Its firmware takes whole degrees up to 30."""

    target: float = 20.0
    applied: list[tuple[float, float]] = []  # noqa: RUF012 (the world's)

    def apply(self, old: Heater) -> None:
        WORLD.append((old.target, self.target))
        if self.target > 30:
            raise ValueError("too hot")
        self.target = round(self.target)


class SlowHeater(Heater):
    async def apply(self, old: Heater) -> None:  # type: ignore[override]
        await anyio.lowlevel.checkpoint()
        super().apply(old)


WORLD: list[tuple[float, float]] = []


@pytest.fixture(autouse=True)
def loaded() -> None:
    WORLD.clear()
    with State() as state:
        state.load(Heater())
        state.load(SlowHeater())


@pytest.mark.parametrize("cls", [Heater, SlowHeater])
def test_apply_may_correct_values(cls: type[Heater]) -> None:
    with State(cls) as state:
        heater = state.checkout(cls)
        heater.target = 21.4
        state.commit(heater)
        assert heater.target == 21
        assert state.checkout(cls).target == 21
    assert WORLD == [(20.0, 21.4)]


@pytest.mark.parametrize("cls", [Heater, SlowHeater])
@pytest.mark.anyio
async def test_the_same_in_an_event_loop(cls: type[Heater]) -> None:
    async with State(cls) as state:
        heater = state.checkout(cls)
        heater.target = 21.4
        await state.commit(heater)
        assert state.checkout(cls).target == 21


def test_nothing_is_changed_if_apply_refuses() -> None:
    told: list[float] = []
    State().subscribe(Heater, lambda heater: told.append(heater.target))
    with State(Heater) as state:
        heater = state.checkout(Heater)
        heater.target = 31.0
        with pytest.raises(ValueError, match="too hot"):
            state.commit(heater)
        assert state.checkout(Heater).target == 20.0
        assert heater.target == 31.0
        heater.target = 22.0
        state.commit(heater)  # the copy is as good as before
    assert settle(30)
    assert told == [22]


class Racing(StateModel):
    n: int = 0

    def apply(self, old: Racing) -> None:
        WORLD.append((old.n, self.n))
        if self.n == 7:
            raise OSError("no answer")
        if self.n == 1 and old.n == 0:
            with State() as state:
                other = state.checkout(Racing)
                other.n = 7 if FAIL else 2
                state.commit(other, force=True) if not FAIL else load_seven()


FAIL: list[bool] = []


def load_seven() -> None:
    with State() as state:
        state.load(Racing(7))


@pytest.mark.parametrize("failing", [False, True], ids=["", "and that fails"])
def test_if_another_commit_was_quicker_the_winner_is_applied_again(
    failing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    FAIL[:] = [True] if failing else []
    with State() as state:
        state.load(Racing())
        mine = state.checkout(Racing)
        mine.n = 1
        with caplog.at_level(logging.ERROR), pytest.raises(StaleModel):
            state.commit(mine)
        winner = 7 if failing else 2
        assert state.checkout(Racing).n == winner
    assert WORLD[-1] == (1, winner)
    assert ("could not be applied again" in caplog.text) == failing


@pytest.mark.anyio
async def test_an_async_apply_does_not_stop_an_event_loop() -> None:
    with State(SlowHeater) as state:
        heater = state.checkout(SlowHeater)
        with pytest.raises(RuntimeError, match="use `async with`"):
            state.commit(heater)


class Stuck(StateModel):
    """Its firmware does not answer any more, once it has been overtaken."""

    n: int = 0

    async def apply(self, old: Stuck) -> None:
        if self.n == 1:
            async with State() as state:
                other = state.checkout(Stuck)
                other.n = 2
                await state.commit(other, force=True)
        elif old.n == 1:
            await anyio.sleep_forever()


@pytest.mark.anyio
async def test_applying_the_winner_again_is_given_up_in_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounds, "RESTORE_S", 0.1)
    async with State() as state:
        await state.load(Stuck())
        mine = state.checkout(Stuck)
        mine.n = 1
        with caplog.at_level(logging.ERROR), pytest.raises(StaleModel):
            await state.commit(mine)
        assert state.checkout(Stuck).n == 2
    assert "could not be applied again" in caplog.text
