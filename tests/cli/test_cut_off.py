"""The command line while its server is cut off from the network, and afterwards."""

from __future__ import annotations

import json
import pathlib
from collections.abc import AsyncIterator

import pytest

from moat_kv import P, codec, config
from tests.cli.conftest import Moat
from tests.server import sites

pytestmark = pytest.mark.anyio

KEPT = "moat: kept on test; not in the network yet\n"


@pytest.fixture
async def here(
    anyio_backend: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[sites.Site]:
    async with sites.site(tmp_path) as site:
        monkeypatch.setenv(config.URL_VARIABLE, site.url)
        yield site


@pytest.fixture
def moat(
    here: sites.Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Moat:
    return Moat(here.url, capsys, monkeypatch)


async def lose(here: sites.Site) -> None:
    """Have a set of `a` and a deletion of `b` lose."""
    await here.client.set(P("a"), 1)
    await here.client.set(P("b"), 1)
    here.remote.cut()
    await here.client.set(P("a"), {"x": 2})
    await here.client.delete(P("b"))
    here.log.now += 5
    here.elsewhere("a", 3)
    here.elsewhere("b", 4)
    here.remote.heal()
    await here.settled()


async def test_conflicts_are_listed_and_shown(here: sites.Site, moat: Moat) -> None:
    assert await moat.fine("conflict", "list") == "no conflicts\n"
    assert await moat.fine("conflict", "list", "-o", "json") == "[]\n"
    await lose(here)
    head, *lines = (await moat.fine("conflict", "list")).splitlines()
    assert head.split() == ["AT", "PATH", "NODE", "VALUE", "WINNER", "ID"]
    told = sorted(line.split()[2:6] for line in lines)
    assert told == [["a", "test", '{"x":', "2}"], ["b", "test", "(deleted)", "other"]]
    rows = json.loads(await moat.fine("conflict", "list", "-o", "json"))
    of_a, of_b = sorted(rows, key=lambda row: str(row["path"]))
    assert (of_a["path"], of_a["value"], of_a["winner"]["node"]) == ("a", {"x": 2}, "other")
    assert (of_b["path"], of_b["deleted"]) == ("b", True)
    assert "value" not in of_b
    assert await moat.fine("conflict", "list", "b", "-o", "value") == f"{of_b['id']}\n"
    shown = json.loads(await moat.fine("conflict", "show", of_a["id"], "-o", "json"))
    assert (shown["value"], shown["present"]["value"]) == ({"x": 2}, 3)
    text = await moat.fine("conflict", "show", of_b["id"])
    assert "value        (deleted)\n" in text
    assert "present      4\n" in text
    assert await moat.fine("conflict", "show", of_a["id"], "-o", "value") == '{"x":2}\n'


async def test_a_conflict_is_restored_once(here: sites.Site, moat: Moat) -> None:
    await lose(here)
    (id_,) = (await moat.fine("conflict", "list", "a", "-o", "value")).split()
    rev = (await here.client.get(P("a"))).rev
    refused = await moat("conflict", "restore", id_, "--expect", str(rev - 1))
    assert (refused.code, refused.error_line) == (
        4,
        f"moat: a: expected revision {rev - 1}, found {rev}",
    )
    assert (await here.client.get(P("a"))).value == 3
    assert (await moat.fine("conflict", "restore", id_)).startswith("a restored, revision ")
    assert (await here.client.get(P("a"))).value == {"x": 2}
    again = await moat("conflict", "restore", id_)
    assert (again.code, again.error_line) == (
        3,
        f"moat: no conflict {id_}; `conflict list` shows what there is",
    )
    (id_,) = (await moat.fine("conflict", "list", "-o", "value")).split()
    here.remote.cut()
    refused = await moat("conflict", "restore", id_)
    assert (refused.code, refused.out) == (4, "")
    here.remote.heal()
    assert (await moat.fine("conflict", "restore", id_)).startswith("b deleted, revision ")
    assert "value" not in await here.client.get(P("b"))
    assert await moat.fine("conflict", "list") == "no conflicts\n"


async def test_conflicts_are_forgotten_by_id_by_age_and_all(here: sites.Site, moat: Moat) -> None:
    await lose(here)
    for words in ([], ["--all", "--older", "1d"], ["x", "--all"]):
        refused = await moat("conflict", "clear", *words)
        assert refused.code == 128
        assert "say which: some IDs, --older TIME, or --all" in refused.error_line
    refused = await moat("conflict", "clear", "--older", "soon")
    assert (refused.code, "'soon' is no time" in refused.error_line) == (128, True)
    assert (await moat("conflict", "clear", "n9:x:1")).code == 3
    (id_,) = (await moat.fine("conflict", "list", "b", "-o", "value")).split()
    assert await moat.fine("conflict", "clear", id_) == "1 conflict forgotten\n"
    # The test's log counts from 1970, so all that is in it is old.
    assert await moat.fine("conflict", "clear", "--older", "99999w") == "0 conflicts forgotten\n"
    assert await moat.fine("conflict", "clear", "--older", "30d") == "1 conflict forgotten\n"
    await lose(here)
    assert await moat.fine("conflict", "clear", "--all") == "2 conflicts forgotten\n"
    assert (await here.client.get(P("a"))).value == 3


async def test_a_write_that_is_pending_is_told_in_one_line(here: sites.Site, moat: Moat) -> None:
    await here.client.set(P("a"), 1)
    here.remote.cut()
    for words in (["a", "set", "-e", ":", "2"], ["b.c", "set", "-v", ":", "y"], ["a", "delete"]):
        done = await moat("data", *words)
        assert (done.code, done.out, done.err) == (0, "", KEPT)
    done = await moat("data", "a", "set", "-e", ":", "3", "-o", "json")
    assert (done.code, done.err, json.loads(done.out)["pending"]) == (0, KEPT, True)
    for words in (["a", "set", "-e", ":", "4", "--expect", "1"], ["z", "set", "-v", "b", "x"]):
        refused = await moat("data", *words)
        assert (refused.code, refused.error_line[:15]) == (4, "moat: detached:")
    here.remote.heal()
    await here.settled()
    assert await moat.fine("data", "a", "set", "-e", ":", "3", "-o", "value")
    assert await moat.fine("data", "a") == "3\n"


async def test_what_is_pending_is_marked(here: sites.Site, moat: Moat) -> None:
    await here.client.set(P("a.old"), 1)
    here.remote.cut()
    await here.client.set(P("a.new"), "x")
    listed = await moat.fine("data", "a", "list")
    assert [line.split() for line in listed.splitlines()[1:]] == [
        ["a.new", "x", "(pending)", "0"],
        ["a.old", "1", "0"],
    ]
    rows = json.loads(await moat.fine("data", "a", "list", "-o", "json"))
    assert [row.get("pending", False) for row in rows] == [True, False]
    watched = await moat.fine("data", "a", "watch", "-f", "--count", "2")
    assert sorted(watched.splitlines()) == ["a.new  x (pending)", "a.old  1"]
    shown = json.loads(await moat.fine("data", "a.new", "get", "-l", "-o", "json"))
    assert (shown["value"], shown["pending"]) == ("x", True)
    bare = await moat("data", "a.new")
    assert (bare.code, bare.out) == (0, "x\n")
    assert bare.err == "moat: a.new is kept on test; not in the network yet\n"


async def test_the_servers_of_a_network_are_listed(here: sites.Site, moat: Moat) -> None:
    head, line = (await moat.fine("net", "list")).splitlines()
    assert " ".join(head.split()[:7]) == "NODE ROLE STATE SINCE REVISION LAG OUTBOX"
    assert line.split()[:3] == ["test", "member", "attached"]
    here.remote.cut()
    await here.client.set(P("a"), 1)
    (row,) = json.loads(await moat.fine("net", "list", "-o", "json"))
    assert (row["state"], row["outbox"], row["own"]) == ("cut off", 1, True)
    assert row["memory_bytes"] > 1_000_000
    assert await moat.fine("net", "list", "-o", "value") == "test\n"
    here.server.servers.hear(codec.pack(row | {"node": "n2", "attached": True}))
    status = await moat.fine("status")
    facts = dict(line.split(None, 1) for line in status.splitlines() if "  " in line)
    assert (facts["engine.attached"].strip(), facts["engine.outbox"].strip()) == ("false", "1")
    assert status.splitlines()[-2].split()[0] == "n2"
    servers = json.loads(await moat.fine("status", "-o", "json"))["servers"]
    assert [each["node"] for each in servers] == ["n2", "test"]
