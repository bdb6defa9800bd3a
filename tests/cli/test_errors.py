"""`moat kv error`: records that runners keep are listed, shown, acknowledged and resolved."""

from __future__ import annotations

import json

import pytest

import moat_kv
from moat_kv import P
from moat_kv.client import error_record
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio


@pytest.fixture
async def failed(client: moat_kv.Client) -> None:
    try:
        raise ValueError("no sensor")
    except ValueError as exc:
        await error_record.record(client, "run", P("a.b"), node="n1", exc=exc)
        await error_record.record(client, "run", P("a.b"), node="n2", exc=exc, data={"x": 1})
    await error_record.record(client, "code", P("c"), node="n1", message="line 1")
    await error_record.resolve(client, "code", P("c"), by="success")


def _nobody() -> str:
    raise KeyError("getpwuid(): uid not found: 12345")


@pytest.mark.usefixtures("failed")
async def test_open_errors_are_listed(moat: Moat) -> None:
    rows = [json.loads(x) for x in (await moat.fine("error", "list", "-o", "jsonl")).splitlines()]
    assert len(rows) == 1
    assert rows[0]["path"] == "a.b"
    assert rows[0]["count"] == 2
    assert rows[0]["message"] == "ValueError: no sensor"
    assert rows[0]["nodes"] == ["n1", "n2"]
    assert "n1, n2" in await moat.fine("error", "list")
    assert await moat.fine("error", "list", "-o", "value") == "a.b\n"
    rows = json.loads(await moat.fine("error", "list", "--all", "-o", "json"))
    assert {each["state"] for each in rows} == {"open", "resolved by success"}
    assert await moat.fine("error", "list", "c") == "no open errors\n"
    assert json.loads(await moat.fine("error", "list", "--all", "-s", "code", "-o", "json"))


@pytest.mark.usefixtures("failed")
async def test_an_error_is_shown_with_its_traces(moat: Moat) -> None:
    out = await moat.fine("error", "show", "a.b")
    assert "subsystem  run" in out
    assert "on n2, once" in out
    assert "Traceback" in out
    same = await moat.fine("error", "show", ":.moat.kv.error.run.a.b")
    assert same == out
    shown = json.loads(await moat.fine("error", "show", "a.b", "-o", "json"))
    assert shown["nodes"]["n2"]["data"] == {"x": 1}


@pytest.mark.usefixtures("failed")
async def test_an_error_is_acknowledged_and_resolved(
    moat: Moat, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await moat.fine("error", "ack", "a.b", "being looked at") == ""
    assert "being looked at" in await moat.fine("error", "show", "a.b")
    assert "open: being looked at" in await moat.fine("error", "list")
    assert '"state":"open"' in await moat.fine("error", "list", "-o", "jsonl")
    await moat.fine("error", "ack", "a.b")
    assert "seen by " in await moat.fine("error", "show", "a.b")
    monkeypatch.setattr("getpass.getuser", _nobody)
    await moat.fine("error", "ack", "a.b")
    assert "seen by user " in await moat.fine("error", "show", "a.b")
    assert await moat.fine("error", "resolve", "a.b", "--comment", "replaced") == ""
    assert await moat.fine("error", "list") == "no open errors\n"
    ended = await moat("error", "resolve", "a.b")
    assert (ended.code, ended.error_line) == (
        3,
        "moat: no open error of a.b; it is resolved already",
    )


@pytest.mark.usefixtures("failed")
async def test_errors_are_watched(moat: Moat) -> None:
    out = await moat.fine("error", "watch", "-f", "--count", "2", "-o", "jsonl")
    assert {json.loads(line)["path"] for line in out.splitlines()} == {"a.b", "c"}


@pytest.mark.usefixtures("failed")
async def test_entries_that_are_no_errors_do_not_end_a_watch(
    moat: Moat, client: moat_kv.Client
) -> None:
    await client.set(P(":.moat.kv.error.a"), "somebody's own")
    await moat.fine("code", "tell", "set", "-s", "-", stdin="print(error)")
    await moat.fine("error", "notify", "tell")
    out = await moat.fine("error", "watch", "-f", "--count", "2", "-o", "value")
    assert sorted(out.split()) == ["a.b", "c"]
    assert await moat.fine("error", "list", "-o", "value") == "a.b\n"


async def test_procedure_for_new_errors_is_set_shown_and_taken_away(
    moat: Moat, client: moat_kv.Client
) -> None:
    nobody = await moat("error", "notify")
    assert (nobody.code, nobody.error_line) == (
        3,
        "moat: no procedure for new errors; nobody is told",
    )
    early = await moat("error", "notify", "tell.me", "-g", "house")
    assert early.code == 0
    assert early.err.splitlines() == [
        "moat: there is no procedure tell.me yet",
        "moat: no runner serves group house now",
    ]
    assert (await client.get(P(":.moat.kv.error"))).value == {
        "notify": P("tell.me"),
        "group": P("house"),
    }
    assert json.loads(await moat.fine("error", "notify", "-o", "json")) == {
        "notify": "tell.me",
        "group": "house",
    }
    for words in (["--off", "tell.me"], ["--off", "-g", "x"], ["-g", "x"], ["tell..me"]):
        assert (await moat("error", "notify", *words)).code == 128
    assert await moat.fine("error", "notify", "--off") == ""
    assert (await moat("error", "notify")).code == 3


@pytest.mark.usefixtures("failed")
async def test_unknown_and_ambiguous_errors(moat: Moat, client: moat_kv.Client) -> None:
    for verb in ("show", "ack", "resolve"):
        ended = await moat("error", verb, "x")
        assert ended.error_line == "moat: no error of x; `error list` shows what there is"
        assert ended.code == 3
    await error_record.record(client, "code", P("a.b"), node="n1", message="m")
    ended = await moat("error", "show", "a.b")
    assert ended.code == 128
    assert "has errors of code, run; say which with -s" in ended.error_line
    assert "message    m" in await moat.fine("error", "show", "a.b", "-s", "code")


async def test_status_tells_of_the_server(moat: Moat, client: moat_kv.Client) -> None:
    await client.set(P("a"), 1)
    facts = json.loads(await moat.fine("status", "-o", "json"))
    assert (facts["node"], facts["entries"], facts["revision"]) == ("n1", 1, 1)
    assert "engine.kind" in await moat.fine("status")
