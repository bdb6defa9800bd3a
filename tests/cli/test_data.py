"""`moat kv data`: what each verb prints and does."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import anyio
import pytest

import moat_kv
from moat_kv import P
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio


async def test_set_is_silent_and_get_is_the_default_verb(moat: Moat) -> None:
    assert await moat.fine("data", "one.two.three", "set", "-e", ":", "123") == ""
    assert await moat.fine("data", "one.two.three") == "123\n"
    assert await moat.fine("data", "one.two.three", "get") == "123\n"


async def test_the_root_and_special_paths_are_entries_like_others(moat: Moat) -> None:
    await moat.fine("data", ":", "set", "-v", ":", "root")
    await moat.fine("data", ":.moat:3:t", "set", "-v", ":", "special")
    assert await moat.fine("data", ":") == "root\n"
    assert await moat.fine("data", ":", "get") == "root\n"
    assert await moat.fine("data", ":.moat:3:t") == "special\n"
    assert await moat.fine("data", "list", "set", "-v", ":", "named like a verb") == ""
    assert await moat.fine("data", "list", "get") == "named like a verb\n"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        pytest.param(["-v", ":", "a text"], "a text\n", id="text"),
        pytest.param(["-v", ":", "-"], "-\n", id="a dash as text"),
        pytest.param(["-e", ":", "-3"], "-3\n", id="negative"),
        pytest.param(["-e", ":", "1.5"], "1.5\n", id="float"),
        pytest.param(["-e", ":", "True"], "true\n", id="Python's true"),
        pytest.param(["-e", ":", "null"], "null\n", id="JSON's null"),
        pytest.param(["-e", ":", "b'\\x00x'"], "b'\\x00x'\n", id="bytes"),
        pytest.param(["-e", ":", "10**3"], None, id="nothing is evaluated"),
        pytest.param(["-e", ":", "{'a': [1, (2, 3)]}"], "a:\n- 1\n- - 2\n  - 3\n", id="nested"),
        pytest.param(["-p", ":", "a.b:1"], "a.b:1\n", id="path"),
        pytest.param(["-e", ":", "18446744073709551616"], "18446744073709551616\n", id="big"),
        pytest.param(["-e", ":", "[]"], "[]\n", id="empty list"),
        pytest.param(["-y", "-"], "a: 1\nb: [x, y]\n", id="YAML"),
        pytest.param(["-y"], "a: 1\nb: [x, y]\n", id="YAML without a file"),
    ],
)
async def test_every_kind_of_value(moat: Moat, options: list[str], shown: str | None) -> None:
    ended = await moat("data", "x", "set", *options, stdin="a: 1\nb: [x, y]\n")
    if shown is None:
        assert ended.code == 128
        return
    assert (ended.code, ended.err) == (0, "")
    expected = "a: 1\nb:\n- x\n- y\n" if options[0] == "-y" else shown
    assert await moat.fine("data", "x") == expected


async def test_attributes_change_and_leave_the_others(moat: Moat, client: moat_kv.Client) -> None:
    path = P("room")
    await moat.fine("data", "room", "set", "-v", "name", "kitchen", "-e", "temp.max", "30")
    await moat.fine(
        "data", "room", "set", "-e", "temp.min", "10", "-p", "at", "a.b", "-e", ":5", "1"
    )
    assert (await client.get(path)).value == {
        "name": "kitchen",
        "temp": {"max": 30, "min": 10},
        "at": P("a.b"),
        5: 1,
    }
    await moat.fine("data", "room", "set", "-e", "temp.max", "-", "-e", "at", "-", "-e", ":5", "-")
    assert (await client.get(path)).value == {"name": "kitchen", "temp": {"min": 10}}
    await moat.fine("data", "room", "set", "-e", ":", "{'new': 1}", "-v", "name", "hall")
    assert (await client.get(path)).value == {"new": 1, "name": "hall"}


async def test_attributes_of_what_is_no_mapping_are_refused(moat: Moat) -> None:
    await moat.fine("data", "x", "set", "-e", ":", "3")
    ended = await moat("data", "x", "set", "-e", "a", "1")
    assert ended.code == 1
    assert "the value is no mapping, so it has no 'a'" in ended.error_line
    ended = await moat("data", "y", "set", "-e", "a", "-")
    assert ended.code == 3
    assert ended.error_line == "moat: no attribute a"


async def test_changes_of_attributes_at_the_same_time_all_hold(
    moat: Moat, client: moat_kv.Client
) -> None:
    from moat_kv_cli import entries

    async def add(name: str) -> None:
        await entries.change(client, P("x"), lambda old: {**(old or {}), name: 1})

    await client.set(P("x"), {})
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(add, f"n{number}")
    assert len((await client.get(P("x"))).value) == 20


async def test_expect_and_idem(moat: Moat) -> None:
    first = json.loads(await moat.fine("data", "x", "set", "-e", ":", "1", "-o", "json"))
    assert first["path"] == "x"
    ended = await moat("data", "x", "set", "-e", ":", "2", "--expect", "0")
    assert ended.code == 4
    assert ended.error_line == f"moat: x: expected revision 0, found {first['rev']}"
    ended = await moat("data", "x", "set", "-e", "a", "2", "--expect", "99")
    assert ended.code == 4
    again = await moat.fine("data", "x", "set", "-e", ":", "1", "--idem", "-o", "json")
    assert json.loads(again)["rev"] == first["rev"]
    await moat.fine("data", "x", "set", "-e", ":", "2", "--expect", str(first["rev"]))


async def test_what_is_not_there_is_3_and_says_what_is_below(moat: Moat) -> None:
    await moat.fine("data", "a.b", "set", "-e", ":", "1")
    ended = await moat("data", "a")
    assert ended.code == 3
    assert ended.error_line == "moat: no entry at a; `list` shows what is below it (1)"
    for words in (["x"], ["x", "delete"], ["x", "delete", "-r"], ["x", "history"], ["x", "edit"]):
        ended = await moat("data", *words)
        assert ended.code == 3, words
        assert ended.error_line.startswith("moat: no ")


async def test_every_output_of_a_value(moat: Moat) -> None:
    await moat.fine("data", "x", "set", "-e", ":", "{'a': b'\\x01', 'b': 'x'}")
    assert json.loads(await moat.fine("data", "x", "-o", "json")) == {
        "a": {"$bytes": "AQ=="},
        "b": "x",
    }
    assert await moat.fine("data", "x", "-o", "jsonl") == '{"a":{"$bytes":"AQ=="},"b":"x"}\n'
    assert await moat.fine("data", "x", "-o", "yaml") == "a: !!binary |\n  AQ==\nb: x\n"
    assert await moat.fine("data", "x", "-o", "value") == '{"a":{"$bytes":"AQ=="},"b":"x"}\n'
    long = json.loads(await moat.fine("data", "x", "-l", "-o", "json"))
    assert long.keys() == {"path", "value", "rev", "at", "id"}
    assert (await moat.fine("data", "x", "-l")).splitlines()[0] == "path   x"


async def test_listing(moat: Moat) -> None:
    for path in ("b", "a.x", "a.y.z", ":.moat.c", ":5"):
        await moat.fine("data", path, "set", "-v", ":", f"at {path}")
    rows = [line.split("  ") for line in (await moat.fine("data", ":", "list")).splitlines()]
    assert rows[0][0] == "PATH"
    lines = (await moat.fine("data", ":", "list", "-o", "jsonl")).splitlines()
    listed = [json.loads(line) for line in lines]
    assert {each["path"]: each["children"] for each in listed} == {
        ":.moat": 1,
        "a": 2,
        "b": 0,
        ":5": 0,
    }
    names = (await moat.fine("data", "a", "list", "-o", "value")).split()
    assert names == ["a.x", "a.y"]
    names = (await moat.fine("data", "a", "list", "-r", "-o", "value")).split()
    assert names == ["a.x", "a.y.z"]
    table = await moat.fine("data", "a", "list", "-r", "-o", "table")
    assert "a.y.z" in table
    assert "at a.x" in table


async def test_a_list_of_nothing_is_empty_only_where_there_is_an_entry(moat: Moat) -> None:
    for words in (["list"], ["list", "-r"]):
        assert await moat.fine("data", ":", *words, "-o", "json") == "[]\n"
        ended = await moat("data", "a.b", *words)
        assert (ended.code, ended.out) == (3, "")
        assert ended.error_line == "moat: no entry at or below a.b"
    await moat.fine("data", "a.b", "set", "-e", ":", "1")
    for words in (["list"], ["list", "-r"]):
        assert await moat.fine("data", "a.b", *words, "-o", "json") == "[]\n"
        assert await moat.fine("data", "a", *words, "-o", "value") == "a.b\n"
    await moat.fine("data", "a.b", "delete")
    assert (await moat("data", "a", "list")).code == 3


async def test_a_dump_of_nothing_is_refused_and_leaves_the_file(
    moat: Moat, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "dump.jsonl"
    file.write_text("an earlier one")
    ended = await moat("data", "nothing.here", "dump", str(file))
    assert (ended.code, ended.out) == (3, "")
    assert ended.error_line == "moat: no entry at or below nothing.here"
    assert file.read_text() == "an earlier one"
    assert len((await moat.fine("data", ":", "dump")).splitlines()) == 1
    await moat.fine("data", "nothing.here", "set", "-e", ":", "1")
    assert len((await moat.fine("data", "nothing", "dump")).splitlines()) == 2


async def test_deleting(moat: Moat) -> None:
    for path in ("a", "a.b", "a.c"):
        await moat.fine("data", path, "set", "-e", ":", "1")
    assert await moat.fine("data", "a", "delete") == ""
    assert await moat.fine("data", "a.b") == "1\n"
    assert await moat.fine("data", "a", "delete", "-r") == "2 entries deleted\n"
    assert (await moat("data", "a.b")).code == 3
    await moat.fine("data", "x", "set", "-e", ":", "1")
    assert (await moat("data", "x", "delete", "--expect", "77")).code == 4
    assert await moat.fine("data", ":", "delete", "-r", "--force") == "1 entry deleted\n"


async def test_history_has_the_versions_newest_first(moat: Moat) -> None:
    for value in ("1", "2"):
        await moat.fine("data", "x", "set", "-e", ":", value)
    await moat.fine("data", "x", "delete")
    lines = (await moat.fine("data", "x", "history")).splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["(deleted)", "2", "1"]
    rows = (await moat.fine("data", "x", "history", "-o", "jsonl", "--limit", "2")).splitlines()
    assert [json.loads(row).get("value") for row in rows] == [None, 2]
    assert json.loads(rows[0])["deleted"] is True


async def watched(moat: Moat, client: moat_kv.Client, *words: str) -> list[str]:
    """What `data ... watch` prints while some entries change."""
    lines: list[str] = []
    started = anyio.Event()

    async def watch() -> None:
        lines.extend((await moat.fine("data", *words)).splitlines())
        started.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        with anyio.fail_after(30):
            while not (await client.state())["watchers"]:
                await anyio.sleep(0.01)
        for path, value in (("a.b.c", 1), ("x", 2), ("a.b", [3])):
            await client.set(P(path), value)
            await anyio.sleep(0.02)
        await client.delete(P("a.b.c"))
    return lines


async def test_watching_prints_changes_and_deletions(moat: Moat, client: moat_kv.Client) -> None:
    lines = await watched(moat, client, "a", "watch", "--count", "3")
    assert lines == ["a.b.c  1", "a.b  [3]", "a.b.c  (deleted)"]


async def test_watching_as_json_has_a_line_for_each_change(
    moat: Moat, client: moat_kv.Client
) -> None:
    lines = await watched(moat, client, "a", "watch", "--count", "3", "-o", "jsonl")
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [row.get("value") for row in rows] == [1, [3], None]
    assert [row.get("deleted") for row in rows] == [None, None, True]
    assert [row["path"] for row in rows] == ["a.b.c", "a.b", "a.b.c"]


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        pytest.param([":", "watch", "--match", "a.+"], ["a.b  [3]"], id="one level"),
        pytest.param([":", "watch", "--match", "+"], ["x  2"], id="first level"),
        pytest.param(["a", "watch", "--match", "+.#"], ["a.b.c  1"], id="below a path"),
        pytest.param([":", "watch", "--max-depth", "1"], ["x  2"], id="depth"),
        pytest.param(["a", "watch", "--max-depth", "1"], ["a.b  [3]"], id="depth below"),
    ],
)
async def test_watching_a_part(
    moat: Moat, client: moat_kv.Client, words: list[str], seen: list[str]
) -> None:
    assert await watched(moat, client, *words, "--count", str(len(seen))) == seen


async def test_watching_with_fetch_begins_with_what_is_there(moat: Moat) -> None:
    await moat.fine("data", "a", "set", "-e", ":", "1")
    await moat.fine("data", "a.b", "set", "-e", ":", "2")
    out = await moat.fine("data", "a", "watch", "-f", "--count", "2")
    assert out == "a  1\na.b  2\n"


def editor(tmp_path: pathlib.Path, script: str) -> str:
    """An editor: a Python program whose only argument is the file."""
    import sys

    file = tmp_path / "editor.py"
    file.write_text("import sys, pathlib\nfile = pathlib.Path(sys.argv[1])\n" + script)
    return f"{sys.executable} -S {file}"


async def test_editing(moat: Moat, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await moat.fine("data", "x", "set", "-e", ":", "{'a': 1, 'b': b'raw'}")
    text = "file.write_text(file.read_text().replace('a: 1', 'a: 22'))"
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor(tmp_path, text))
    assert await moat.fine("data", "x", "edit") == ""
    assert await moat.fine("data", "x", "-o", "jsonl") == '{"a":22,"b":{"$bytes":"cmF3"}}\n'
    assert await moat.fine("data", "x", "edit") == "nothing changed\n"
    monkeypatch.setenv("EDITOR", editor(tmp_path, "file.write_text('[1, 2]')"))
    assert await moat.fine("data", "new", "edit", "--new") == ""
    assert await moat.fine("data", "new", "-o", "jsonl") == "[1,2]\n"


async def test_editing_keeps_the_text_when_others_were_faster(
    moat: Moat, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moat_kv_cli import edit

    await moat.fine("data", "x", "set", "-e", ":", "1")

    async def type_slowly(file: pathlib.Path) -> None:
        await anyio.Path(file).write_text("mine: 1\n")
        async with moat_kv.open_client(moat.url) as other:
            await other.set(P("x"), "theirs")

    monkeypatch.setattr(edit, "_run_editor", type_slowly)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ended = await moat("data", "x", "edit")
    assert ended.code == 4
    before, _, kept = ended.error_line.rpartition(" ")
    assert before == (
        "moat: x: expected revision 1, found 2; others changed it meanwhile; your text is in"
    )
    assert await anyio.Path(kept).read_text() == "mine: 1\n"
    assert await moat.fine("data", "x") == "theirs\n"


@pytest.mark.parametrize(
    ("script", "line"),
    [
        pytest.param("file.write_text('a: [')", "not YAML: line", id="no YAML"),
        pytest.param("sys.exit(3)", "ended with 3", id="the editor failed"),
        pytest.param("file.write_text(' \\n# x\\n')", "the text is empty", id="nothing left"),
    ],
)
async def test_editing_that_fails_changes_nothing(
    moat: Moat,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    line: str,
) -> None:
    await moat.fine("data", "x", "set", "-e", ":", "1")
    monkeypatch.setenv("VISUAL", editor(tmp_path, script))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    ended = await moat("data", "x", "edit")
    assert ended.code == 1
    assert line in ended.error_line
    assert await moat.fine("data", "x") == "1\n"
