"""`moat kv net hash` compares servers."""

from __future__ import annotations

import json

import pytest

from moat_kv import Client
from moat_kv.entry import Record
from moat_kv.path import P
from moat_kv.testing.server import running_server
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio


async def test_one_server_tells_its_hash(moat: Moat, client: Client) -> None:
    empty = await moat.fine("net", "hash", "-o", "value")
    assert empty == "0" * 64 + "\n"
    await client.set(P("a.b"), 1)
    whole = await moat.fine("net", "hash", "-o", "value")
    assert whole != empty
    assert await moat.fine("net", "hash", "a", "-o", "value") == whole
    assert await moat.fine("net", "hash", "x", "-o", "value") == empty
    header, row = (await moat.fine("net", "hash")).splitlines()
    assert header.split() == ["NODE", "URL", "REV", "ENTRIES", "HASH"]
    assert row.split() == ["n1", moat.url, "1", "1", whole[:16]]


async def test_servers_that_differ_are_shown_with_what_differs(moat: Moat) -> None:
    async with running_server("n2") as one, running_server("n3") as two:
        for running in (one, two):
            running.server.engine.epoch = "the same"
            same = [Record(rev, P("a") / rev, b"\x01", 1.0, "n2:0", rev) for rev in (1, 2, 3)]
            running.server.store.apply(same)
        urls = ("--url", one.url, "--url", two.url)
        facts = json.loads(await moat.fine(*urls, "net", "hash", "-o", "json"))
        assert (facts["equal"], facts["differences"]) == (True, [])
        assert [each["node"] for each in facts["servers"]] == ["n2", "n3"]
        one.server.store.apply([Record(4, P("a.b"), b"\x01", 1.0, "n2:0", 4)])
        two.server.store.apply([Record(4, P("c"), b"\x01", 1.0, "n3:0", 1)])
        ended = await moat(*urls, "net", "hash")
        assert (ended.code, ended.error_line) == (1, "moat: the trees differ")
        lines = [line.split() for line in ended.out.splitlines()]
        assert lines[4] == ["PATH", "N2", "N3"]
        assert sorted(lines[5:]) == [["a.b", "4", "n2:0:4", "-"], ["c", "-", "4", "n3:0:1"]]
        limited = await moat(*urls, "net", "hash", "--limit", "1", "-o", "json")
        assert len(json.loads(limited.out)["differences"]) == 1


async def test_different_networks_are_not_compared(moat: Moat) -> None:
    async with running_server("n2") as one, running_server("n3") as two:
        ended = await moat("--url", one.url, "--url", two.url, "net", "hash")
        assert ended.code == 1
        assert ended.error_line.startswith("moat: these are different trees, of the epochs ")


async def test_a_server_that_cannot_be_reached_is_named(moat: Moat) -> None:
    nobody = f"{moat.url}.nobody"
    ended = await moat("--url", moat.url, "--url", nobody, "net", "hash")
    assert ended.code == 2
    assert nobody in ended.error_line
