"""State models: checkout and commit beside myosin, and a shared commit beside a compare-and-set.

myosin 0.2.3 takes part where it is installed (`pip install '.[bench]'`); both keep their figures
for Prometheus and their files, in a folder of the run.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import calls, outcome, peers, rounds
from benchmarks.stage import OURS
from moat_kv import P
from moat_kv.state import Models, State, StateModel, attach

MYOSIN, BARE = "myosin", "bare compare-and-set"
#: So many cycles for each call of the scale; alone they are quick.
CYCLES = 10
AIM = 3.0


def has_myosin() -> bool:
    return importlib.util.find_spec("myosin") is not None


def _user_of(base: type[Any]) -> type[Any]:
    """The reference's model, for either library: getters and setters, and something longer."""

    def __init__(self: Any) -> None:
        base.__init__(self)
        self.name, self.email, self.n = "chris", "chris@email.com", 0
        self.rooms = [f"room {number}" for number in range(20)]

    def serialize(self: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "email": self.email,
            "n": self.n,
            "rooms": self.rooms,
        }

    def deserialize(self: Any, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)

    methods = {"__init__": __init__, "serialize": serialize, "deserialize": deserialize}
    properties = {"name": _property("_name"), "email": _property("_email")}
    # (both keep files by the class's name, in the same folder)
    name = "User" + base.__module__.partition(".")[0]
    return type(name, (base,), {**methods, **properties})


def _property(hidden: str) -> property:
    return property(
        lambda self: getattr(self, hidden), lambda self, value: setattr(self, hidden, value)
    )


def _cycles(state: Any, cls: type[Any], count: int, *, cache: bool) -> float:
    """The time of one checkout and commit under the lock, in seconds."""
    began = time.perf_counter()
    for _ in range(count):
        with state(cls) as held:
            user = held.checkout(cls)
            user.n += 1
            held.commit(user, cache=cache)
    return (time.perf_counter() - began) / count


def _contestant(state: Any, cls: type[Any], count: int, *, cache: bool) -> rounds.Round:
    async def play() -> float:
        return _cycles(state, cls, count, cache=cache)

    return play


async def _alone(place: peers.Place, *, cache: bool) -> outcome.Figure:
    count = place.scale.calls * (1 if cache else CYCLES)
    ours = _user_of(StateModel)
    with State() as state:
        state.load(ours())
    contestants = {OURS: _contestant(State, ours, count, cache=cache)}
    if has_myosin():
        myosin: Any = importlib.import_module("myosin")
        theirs = _user_of(myosin.StateModel)
        with myosin.State() as state:
            state.load(theirs())
        contestants[MYOSIN] = _contestant(myosin.State, theirs, count, cache=cache)
    try:
        series = await rounds.alternate(contestants, place.scale.rounds)
    finally:
        State().reset()
    aim, note = None, "myosin is not installed"
    if MYOSIN in series:
        note = f"myosin takes {series.median(MYOSIN) * 1e6:.0f} µs"
        times = series.ratio(MYOSIN, OURS)
        aim = outcome.Aim(
            text=f"at least {AIM:g} times as fast as myosin 0.2.3",
            value=times,
            limit=AIM,
            at_least=True,
        )
    what = "checkout and commit of a model, " + ("kept as a file" if cache else "in memory")
    return calls.figure(what, "s", series, aim=aim, note=note)


async def _shared(place: peers.Place) -> outcome.Figure:
    """A commit inside of a State, and a set that expects a revision, at the same server."""
    count, models, cls = place.scale.calls, Models(), _user_of(StateModel)
    with place.server() as server:
        async with server.client() as client, attach(client, within=models):
            async with State(within=models) as state:
                await state.load(cls())
            async with State(cls, within=models) as state:
                user = state.checkout(cls)

                async def commit(number: int) -> None:
                    user.n = number
                    await state.commit(user)

                value, path = {"state": user.serialize(), "version": 1, "by": "x" * 20}, P("bare")
                rev = (await client.set(path, value)).rev

                async def bare(number: int) -> None:
                    nonlocal rev
                    value["state"]["n"] = number
                    rev = (await client.set(path, value, expect=rev)).rev

                contestants: dict[str, rounds.Round] = {
                    OURS: lambda: rounds.round_trip(commit, count),
                    BARE: lambda: rounds.round_trip(bare, count),
                }
                series = await rounds.alternate(contestants, place.scale.rounds)
    note = f"{series.ratio(OURS, BARE):.2f} times the bare one"
    return calls.figure("commit of a shared model", "s", series, note=note)


async def state(place: peers.Place) -> list[outcome.Figure]:
    """Checkout and commit of state models, alone and shared."""
    folder = place.new("cache")
    folder.mkdir()
    with _environment("MYOSIN_CACHE_BASE_PATH", str(folder)):
        return [
            await _alone(place, cache=False),
            await _alone(place, cache=True),
            await _shared(place),
        ]


@contextmanager
def _environment(name: str, text: str) -> Iterator[None]:
    """A variable of the environment, for a while."""
    before = os.environ.get(name)
    os.environ[name] = text
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
