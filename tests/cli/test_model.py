"""`moat kv model`: shared state models from the shell."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
import pytest

from moat_kv import Client, P, open_client
from moat_kv.coord import aio
from moat_kv.state import Models, State, StateModel, attach, attribute, between, matches
from tests.cli.conftest import Moat
from tests.client import waiting

pytestmark = pytest.mark.anyio


class Thermostat(StateModel):
    """Of one room."""

    id: str
    target: float = attribute(default=20.0, check=between(5, 30), doc="degrees")
    mode: str | None = None
    rooms: list[str] = attribute(factory=list)
    unit: str = attribute(default="C", check=matches("[CF]"))


class Site(StateModel):
    name: str = "home"


@pytest.fixture
async def models(moat: Moat, anyio_backend: str) -> AsyncIterator[Models]:
    """A process that has three models."""
    found = Models()
    async with open_client(moat.url) as client, attach(client, within=found):
        async with State(within=found) as state:
            for model in (Thermostat("hall"), Thermostat("bath", 24.0), Site()):
                await state.load(model)
        yield found


async def test_without_models_there_is_nothing_to_list(moat: Moat) -> None:
    assert await moat.fine("model", "list") == "no models\n"
    assert json.loads(await moat.fine("model", "list", "-o", "json")) == []


async def test_models_are_listed(moat: Moat, models: Models) -> None:
    assert (await moat.fine("model", "list", "-o", "value")).split() == [
        "Site",
        "Thermostat.bath",
        "Thermostat.hall",
    ]
    (line,) = (await moat.fine("model", "list", "Thermostat.bath", "-o", "jsonl")).splitlines()
    row = json.loads(line)
    assert row["state"]["target"] == 24.0
    assert row["version"] == 1
    assert "MODEL" in await moat.fine("model", "list")


async def test_a_model_is_printed(moat: Moat, models: Models) -> None:
    state = json.loads(await moat.fine("model", "get", "Thermostat.bath", "-o", "json"))
    assert state == {"id": "bath", "target": 24.0, "mode": None, "rooms": [], "unit": "C"}
    assert "by" in json.loads(await moat.fine("model", "get", "Site", "-l", "-o", "json"))
    ended = await moat("model", "get", "Thermostat.attic")
    assert (ended.code, "no model Thermostat.attic" in ended.error_line) == (3, True)


async def test_a_change_is_committed_to_all_processes(moat: Moat, models: Models) -> None:
    told: list[float] = []
    hall = Thermostat.instance("hall")
    State(within=models).subscribe(hall, lambda model: told.append(model.target))
    await moat.fine("model", "set", "Thermostat.hall", "-e", "target", "21.5", "-e", "mode", "null")
    await waiting.until(lambda: told == [21.5])
    assert State(within=models).checkout(hall).target == 21.5
    whole = {"target": 22.5, "mode": "eco", "rooms": [], "unit": "F"}
    await moat.fine("model", "set", "Thermostat.hall", "-e", ":", str(whole))
    await waiting.until(lambda: told == [21.5, 22.5])
    assert State(within=models).checkout(hall).id == "hall"
    done = await moat.fine("model", "set", "Site", "-v", "name", "work", "-o", "json")
    assert json.loads(done)["model"] == "Site"


async def test_an_entry_that_is_no_model_is_named(moat: Moat, models: Models) -> None:
    await moat.fine("data", ":.moat.kv.model.Site", "set", "-v", ":", "nothing")
    ended = await moat("model", "get", "Site")
    assert ended.code == 1
    assert "not the state of a model: a mapping with `state`" in ended.error_line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("-v", "target", "warm"), "'warm' does not fit; number from 5 to 30 does"),
        (("-e", "target", "true"), "True does not fit; number"),
        (("-e", "rooms", "[1]"), "[1] does not fit; array of string does"),
        (("-e", "rooms", "3"), "does not fit"),
        (("-e", "mode", "3"), "3 does not fit; string or null does"),
        (("-e", "tagret", "3"), "no attribute 'tagret'"),
        (("-e", "target", "99"), "99 does not fit"),
        (("-v", "unit", "metres"), "'metres' does not fit; string like ^(?:[CF])$ does"),
        (("-e", ":", "5"), "is a mapping"),
        (("-e", ":", "{'target': 5}"), "is missing (at mode)"),
    ],
    ids=" ".join,
)
async def test_a_change_that_does_not_fit_is_refused(
    moat: Moat, models: Models, change: tuple[str, ...], reason: str
) -> None:
    ended = await moat("model", "set", "Thermostat.hall", *change)
    assert ended.code == 1
    assert reason in ended.error_line


async def test_a_change_needs_a_value_and_a_model(moat: Moat, models: Models) -> None:
    assert (await moat("model", "set", "Site")).code == 128
    assert (await moat("model", "set", "Nothing", "-e", "x", "1")).code == 3
    assert (await moat("model", "set", "Thermostat.attic", "-e", "target", "9")).code == 3


async def test_a_change_waits_for_the_lock(moat: Moat, models: Models) -> None:
    async with open_client(moat.url) as client, aio.Process(client) as process:
        async with process.lock(P("model.Site")):
            ended = await moat("model", "set", "Site", "-v", "name", "x", "--wait", "0.05")
            assert ended.code == 4
    await moat.fine("model", "set", "Site", "-v", "name", "x")


async def test_commits_are_watched(moat: Moat, models: Models, client: Client) -> None:
    others = (await client.state())["watchers"]

    async def commit() -> None:
        with anyio.fail_after(30):
            while (await client.state())["watchers"] == others:
                await anyio.sleep(0.01)
        async with State(Site, within=models) as state:
            site = state.checkout(Site)
            site.name = "away"
            await state.commit(site)
        await client.set(P(":.moat.kv.model.Other"), "no model")
        await client.delete(P(":.moat.kv.model.Site"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(commit)
        text = await moat.fine("model", "watch", "-f", "--count", "5", "-o", "jsonl")
    rows = [json.loads(line) for line in text.splitlines()]
    fetched = sorted(row["model"] for row in rows[:3])
    assert fetched == ["Site", "Thermostat.bath", "Thermostat.hall"]
    assert [row["model"] for row in rows[3:]] == ["Site", "Site"]
    assert rows[3]["state"]["name"] == "away"
    assert rows[4]["deleted"]


async def test_earlier_states_are_printed(moat: Moat, models: Models) -> None:
    await moat.fine("model", "set", "Site", "-v", "name", "work")
    text = await moat.fine("model", "history", "Site", "-o", "jsonl")
    names = [json.loads(line)["state"]["name"] for line in text.splitlines()]
    assert names == ["work", "home"]
    assert (await moat("model", "history", "Nothing")).code == 3


async def test_the_schema_is_printed(moat: Moat, models: Models) -> None:
    schema = json.loads(await moat.fine("model", "schema", "Thermostat.hall", "-o", "json"))
    assert schema["description"] == "Of one room."
    limits = {"minimum": 5, "maximum": 30}
    target = {"type": "number", "description": "degrees", **limits}
    assert schema["properties"]["target"] == target
    assert (await moat("model", "schema", "Nothing")).code == 3
