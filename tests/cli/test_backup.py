"""`data dump|load|update` and `log save|restore`: what is saved comes back, damage is found."""

from __future__ import annotations

import io
import json
import pathlib
from datetime import UTC, datetime
from typing import Any

import anyio
import msgpack
import pytest

import moat_kv
from moat_kv import P, codec, errors
from moat_kv.testing import server as testing_server
from moat_kv_cli import logfile
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

VALUES: dict[str, Any] = {
    "a": None,
    "a.b": {"x": [1, 2.5, b"\x00\xff", 2**70], 5: "y", "nan": float("inf")},
    "a.b:1:t": P("some.path:1"),
    ":.moat.kv.run.any.default.job": {"code": P("x"), "target": 1.5},
    "z:yff00": datetime(2024, 5, 6, 7, 8, 9, 123456, UTC),
    "z.ext": msgpack.ExtType(42, b"data"),
    "z.text": "line\nline\x00 é",
}


async def fill(client: moat_kv.Client) -> None:
    for path, value in VALUES.items():
        await client.set(P(path), value)


async def contents(client: moat_kv.Client, base: str = ":") -> dict[moat_kv.Path, bytes]:
    return {row.path: codec.pack(row.value) async for row in client.get_tree(P(base))}


async def test_any_value_survives_dump_and_load(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path
) -> None:
    await fill(client)
    before = await contents(client)
    file = str(tmp_path / "all.jsonl")
    assert await moat.fine("data", ":", "dump", file) == ""
    assert await moat.fine("data", ":", "delete", "-r", "--force") == "7 entries deleted\n"
    assert await moat.fine("data", ":", "load", file) == "7 entries set\n"
    assert await contents(client) == before
    assert await moat.fine("data", "copy", "load", file) == "7 entries set\n"
    assert await contents(client, "copy") == before


async def test_a_dump_may_be_a_part_and_replace_one(moat: Moat, client: moat_kv.Client) -> None:
    await client.set(P("a"), 1)
    await client.set(P("a.b"), 2)
    await client.set(P("other"), 3)
    from moat_kv_cli import dump

    await client.set(P("b.old"), 0)
    dumped = '{"format":"moat-kv dump","version":1,"path":"a"}\n'
    dumped += '{"path":":","value":1}\n{"path":"b","value":2}\n'
    assert await moat.fine("data", "b", "load", "--replace", stdin=dumped) == (
        "2 entries set, 1 deleted\n"
    )
    assert await contents(client, "b") == await contents(client, "a")
    assert dump.FORMAT == "moat-kv dump"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "line 1: not JSON", id="empty"),
        pytest.param('{"path":"a","value":1}\n', "line 1: this is no dump", id="no header"),
        pytest.param('{"format":"moat-kv dump","version":9}\n', "version 9 is not", id="version"),
        pytest.param("H[1]\n", 'line 2: {"path": text', id="no mapping"),
        pytest.param('H{"path":"a..b","value":1}\n', "line 2: bad path", id="path"),
        pytest.param('H{"path":"a"}\n', "line 2: a value is missing", id="no value"),
        pytest.param('H{"path":"a","value":{"$x":1}}\n', r"line 2: $x means", id="tag"),
        pytest.param('H{"path":"a","value":1,"x":2}\n', "line 2: x is not known", id="key"),
        pytest.param('H{"path":"a","value":1}\n{"path":"a","value":2}\n', "twice", id="twice"),
        pytest.param('H{"path":"a","value":1}\n{"pa', "line 3: not JSON", id="cut short"),
    ],
)
async def test_a_wrong_dump_changes_nothing(
    moat: Moat, client: moat_kv.Client, text: str, message: str
) -> None:
    head = '{"format":"moat-kv dump","version":1,"path":"a"}\n'
    ended = await moat("data", "x", "load", stdin=text.replace("H", head))
    assert message in ended.error_line
    assert ended.code == 1
    assert await contents(client) == {}


async def test_update_applies_changes_and_deletions(moat: Moat, client: moat_kv.Client) -> None:
    await client.set(P("a.old"), 1)
    lines = [
        {"path": "a.x", "value": 1, "rev": 3, "at": 1.0, "id": "n:1:1"},
        {"path": "a.x", "value": 2},
        {"path": "a.old", "deleted": True, "rev": 9},
        {"path": "a.y", "value": {"$path": "b.c"}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    assert await moat.fine("data", ":", "update", stdin=text) == "4 changes applied\n"
    assert {str(p): codec.unpack(v) for p, v in (await contents(client)).items()} == {
        "a.x": 2,
        "a.y": P("b.c"),
    }
    await moat.fine("data", "copy", "update", "--strip", "a", stdin=text)
    assert set(map(str, await contents(client, "copy"))) == {"x", "y"}
    ended = await moat("data", "copy", "update", "--strip", "b", stdin=text)
    assert (ended.code, ended.error_line) == (
        1,
        "moat: bad value: line 1: a.x is not below b",
    )


async def test_update_takes_what_watch_prints(moat: Moat, client: moat_kv.Client) -> None:
    await fill(client)
    lines = await moat.fine("data", "a", "watch", "-f", "--count", "3", "-o", "jsonl")
    assert await moat.fine("data", "copy", "update", stdin=lines) == "3 changes applied\n"
    assert await contents(client, "copy.a") == await contents(client, "a")


async def test_claims_are_not_carried_into_another_tree(moat: Moat, client: moat_kv.Client) -> None:
    claim = P(":.moat.kv.claim.any.default.x")
    await client.set(claim, {"node": "n1"})
    await client.set(P("a"), 1)
    dumped = await moat.fine("data", ":", "dump")
    assert "claim" not in dumped
    row = '{"path":":.moat.kv.claim.any.default.y","value":{"node":"n1"}}\n'
    assert await moat.fine("data", ":", "load", stdin=dumped + row) == "1 entry set\n"
    lines = row + '{"path":":.moat.kv.claim.any.default.x"}\n{"path":"b","value":2}\n'
    assert await moat.fine("data", ":", "update", stdin=lines) == "1 change applied\n"
    out = await moat.fine("data", ":", "load", "--replace", "--force", stdin=dumped)
    assert out == "1 entry set, 1 deleted\n"
    assert (await contents(client)).keys() == {claim, P("a")}


async def test_replacing_the_whole_tree_has_to_be_meant(moat: Moat, client: moat_kv.Client) -> None:
    dumped = await moat.fine("data", ":", "dump")
    await client.set(P("a"), 1)
    ended = await moat("data", ":", "load", "--replace", stdin=dumped)
    assert ended.code == 128
    assert "--force does it" in ended.error_line
    assert await moat.fine("data", "a") == "1\n"


# The log ----------------------------------------------------------------------------------------


async def test_a_saved_tree_is_restored_into_another_server(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path
) -> None:
    await fill(client)
    before = await contents(client)
    file = str(tmp_path / "n1.moat")
    assert "7 records saved" in await moat.fine("log", "save", file)
    assert "is whole: 7 records" in await moat.fine("log", "restore", "--check", file)
    async with testing_server.running_server("n2") as other:
        out = await moat.fine("--url", other.url, "log", "restore", file)
        assert out == "7 records restored\n"
        async with moat_kv.open_client(other.url) as restored:
            assert await contents(restored) == before
        ended = await moat("--url", other.url, "log", "restore", file)
        assert ended.code == 4
        assert "the tree is not empty" in ended.error_line
        await moat.fine("--url", other.url, "log", "restore", file, "--force")
        data = await anyio.Path(file).read_bytes()
        out = await moat.fine("--url", other.url, "log", "restore", "-", "--force", stdin=data)
        assert out == "7 records restored\n"


async def test_claims_are_left_out(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path
) -> None:
    await client.set(P(":.moat.kv.claim.any.default.x"), {"node": "n1"})
    await client.set(P(":.moat.kv.lock.l"), 1)
    await client.set(P("a"), 1)
    file = str(tmp_path / "f")
    assert "1 record saved" in await moat.fine("log", "save", file)


async def test_saving_while_others_write_has_every_batch_whole(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path
) -> None:
    paths = [P("pair") / side / number for number in range(100) for side in ("l", "r")]
    await client.batch([client.op_set(path, 0) for path in paths])
    file = tmp_path / "f"
    ended = False

    async def write() -> None:
        count = 0
        while not ended:
            count += 1
            n = count % 100
            pair = [P("pair") / side / n for side in ("l", "r")]
            await client.batch([client.op_set(path, count) for path in pair])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await moat.fine("log", "save", str(file))
        ended = True
    state: dict[moat_kv.Path, bytes | None] = {}
    with file.open("rb") as opened:
        for item in logfile.read(opened, "f"):
            if isinstance(item, logfile.Saved):
                state[item.path] = item.value
    for number in range(100):
        assert state[P("pair.l") / number] == state[P("pair.r") / number]


def saved() -> bytes:
    """A small saved log."""
    out = io.BytesIO()
    writer = logfile.Writer(out, {"epoch": "e", "revision": 2})
    writer.add(logfile.Saved(P("a"), b"\x01", 1, 1.0))
    writer.add(logfile.Saved(P("b"), None, 2, 2.0))
    writer.end(2)
    return out.getvalue()


def test_a_saved_log_reads_as_it_was_written() -> None:
    head, first, second, end = logfile.read(io.BytesIO(saved()), "f")
    assert head == {"epoch": "e", "revision": 2}
    assert first == logfile.Saved(P("a"), b"\x01", 1, 1.0)
    assert second == logfile.Saved(P("b"), None, 2, 2.0)
    assert isinstance(end, dict)
    assert (end["end"], end["records"]) == (2, 2)


def test_every_cut_and_every_flipped_bit_is_found() -> None:
    data = saved()
    for length in range(len(data)):
        with pytest.raises(errors.StorageDamaged):
            list(logfile.read(io.BytesIO(data[:length]), "f"))
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(errors.StorageDamaged):
            list(logfile.read(io.BytesIO(bytes(damaged)), "f"))
    with pytest.raises(errors.StorageDamaged, match="more after the end"):
        list(logfile.read(io.BytesIO(data + b"x"), "f"))


async def test_a_damaged_file_is_refused_before_anything_is_written(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "f"
    file.write_bytes(saved()[:-3])
    ended = await moat("log", "restore", str(file))
    assert ended.code == 1
    assert ended.error_line.startswith(f"moat: {file} is damaged: it is cut short")
    assert await contents(client) == {}
    ended = await moat("log", "restore", "-", stdin=b"")
    assert ended.error_line.startswith("moat: standard input is damaged")
    ended = await moat("log", "restore", str(tmp_path / "none"))
    assert ended.code == 1
    assert ended.error_line.endswith("none: No such file or directory")


async def test_a_file_that_cannot_be_written_is_named_once(
    moat: Moat, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "no" / "n1.moat"
    ended = await moat("log", "save", str(file))
    assert ended.code == 1
    assert ended.error_line == f"moat: cannot write {file}: there is no folder {file.parent}"
    ended = await moat("log", "restore", str(file))
    assert ended.code == 1
    assert ended.error_line == f"moat: {file}: No such file or directory"
