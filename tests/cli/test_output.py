"""What is printed for people on a terminal, for people elsewhere, and for programs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

import moat_kv
from moat_kv import P
from moat_kv_cli import output
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

LONG = "x" * 1000


def printed(capsys: pytest.CaptureFixture[str], format: str, rows: list[dict[str, Any]]) -> str:
    capsys.readouterr()
    output.Printer(format).rows(list(rows[0]), rows)
    return capsys.readouterr().out


def test_a_table_shortens_what_is_long_and_the_others_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [{"path": "a", "value": LONG}]
    assert LONG not in printed(capsys, "table", rows)
    assert "x…" in printed(capsys, "table", rows)
    for format in (output.PLAIN, "json", "jsonl", "yaml"):
        assert LONG in printed(capsys, format, rows)


def test_a_table_leaves_the_date_of_today_away(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    full = output.local_time(now)
    (date, clock) = full.split()
    table = printed(capsys, "table", [{"at": now}])
    assert clock in table
    assert date not in table
    assert full in printed(capsys, output.PLAIN, [{"at": now}])
    assert output.local_time(0) in printed(capsys, "table", [{"at": 0}])


def test_one_long_text_leaves_the_other_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"path": "a", "value": LONG, "n": 1}, {"path": "b", "value": "y", "n": 2}]
    lines = printed(capsys, output.PLAIN, rows).splitlines()
    assert lines[1] == f"a     {LONG}  1"
    assert lines[2] == "b     y      2"


def test_names_are_joined_and_values_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, output.PLAIN, [{"nodes": ["n1", "n2"], "result": ["n1"]}])
    assert out.splitlines()[1] == 'n1, n2  ["n1"]'


async def test_the_bare_value_of_a_path_is_its_text(moat: Moat) -> None:
    await moat.fine("data", "x", "set", "-p", ":", "room:1")
    assert await moat.fine("data", "x", "-o", "value") == "room:1\n"
    assert await moat.fine("data", "x", "-o", "jsonl") == '{"$path":"room:1"}\n'


async def test_watching_prints_bare_values(moat: Moat, client: moat_kv.Client) -> None:
    await client.set(P("a.b"), "a text")
    await client.set(P("a.c"), [1, 2])
    out = await moat.fine("data", "a", "watch", "-f", "--count", "2", "-o", "value")
    assert out == "a text\n[1,2]\n"


async def test_a_pattern_that_was_forgotten_to_be_one_is_told(
    moat: Moat, client: moat_kv.Client
) -> None:
    await client.set(P("a.+"), 1)
    ended = await moat("data", "a.+", "watch", "-f", "--count", "1")
    assert ended.error_line == "moat: + and # in PATH are plain texts; a pattern is for --match"
    assert (ended.code, ended.out) == (0, "a.+  1\n")


async def test_lists_stay_lists_for_programs(moat: Moat) -> None:
    options = ["--var", "a", "--var", "b", "--require", "m.n"]
    await moat.fine("code", "y", "set", "-s", "-", *options, stdin="return a + b")
    await moat.fine("code", "x", "set", "-s", "-", stdin="return 1")
    rows = json.loads(await moat.fine("code", ":", "list", "-o", "json"))
    assert [each["path"] for each in rows] == ["x", "y"]
    assert rows[1]["vars"] == ["a", "b"]
    assert rows[1]["requires"] == ["m.n"]
    assert "a, b" in await moat.fine("code", ":", "list")
