"""`moat kv code` and `module`: stored texts are checked, shown, versioned, run and loaded."""

from __future__ import annotations

import json
import pathlib
import time

import anyio
import pytest

import moat_kv
from moat_kv import P, errors
from moat_kv_cli import manifest
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


async def test_code_is_stored_from_standard_input_and_printed(moat: Moat) -> None:
    assert await moat.fine("code", "the.answer", "set", "-s", "-", stdin="return 42") == ""
    assert await moat.fine("code", "the.answer") == "return 42\n"
    assert await moat.fine("code", "the.answer", "-o", "value") == "return 42\n"
    stored = json.loads(await moat.fine("code", "the.answer", "-o", "json"))
    assert (stored["code"], stored["is_async"]) == ("return 42", True)
    assert "is_async  true" in await moat.fine("code", "the.answer", "get", "-l")


async def test_what_is_stored_beside_the_text(moat: Moat, client: moat_kv.Client) -> None:
    more = ["--var", "pin", "--var", "on", "-e", "pin", "17", "-v", "a.b", "x", "-t"]
    facts = [
        "-i",
        "a lamp",
        "--version",
        "1.2",
        "--require",
        "onewire.bus",
        "--require",
        "py:anyio",
    ]
    await moat.fine("code", "blink", "set", "-s", "-", *more, *facts, stdin="return pin")
    stored = await client.get(P(":.moat.kv.code.proc.blink"))
    assert stored.value == {
        "code": "return pin",
        "is_async": False,
        "vars": ["pin", "on"],
        "default": {"pin": 17, "a": {"b": "x"}},
        "requires": ["onewire.bus", "py:anyio"],
        "version": "1.2",
        "info": "a lamp",
    }
    await moat.fine("code", "blink", "set", "-e", "pin", "18", "-A")
    stored = await client.get(P(":.moat.kv.code.proc.blink"))
    assert stored.value["default"] == {"pin": 18, "a": {"b": "x"}}
    assert stored.value["is_async"] is None
    assert stored.value["code"] == "return pin"


@pytest.mark.parametrize(
    ("words", "text", "place"),
    [
        pytest.param("code a set -s -", "x = (\nreturn 42", "a: line 1, column 5: ", id="bracket"),
        pytest.param("code a set -s -", "x = 1\n  y = 2", "a: line 2, column ", id="indent"),
        pytest.param("code a set -s -", "yield 1", "a: line 1, column 1: ", id="yield"),
        pytest.param("code a set -A -s -", "x = 1\nawait y", "a: line 2, column 1", id="not async"),
        pytest.param("code a set -s - --var 1x", "pass", "'1x' cannot be", id="variable"),
        pytest.param("code a set -s - --require a..b", "pass", "bad path 'a..b'", id="requires"),
        pytest.param("module a set -s -", "def f(:\n  pass", "a: line 1, column ", id="module"),
        pytest.param("code a set -s - -e : 3", "pass", "a mapping", id="defaults"),
    ],
)
async def test_what_cannot_run_is_refused_with_its_place(
    moat: Moat, words: str, text: str, place: str
) -> None:
    ended = await moat(*words.split(), stdin=text)
    assert place in ended.error_line
    assert ended.code == 1
    assert (await moat(words.split()[0], "a")).code == 3


async def test_versions_can_be_seen_and_put_back(moat: Moat) -> None:
    for text in ("return 1", "return 2", "return 3"):
        await moat.fine("code", "x", "set", "-s", "-", stdin=text)
    rows = (await moat.fine("code", "x", "history", "-o", "jsonl")).splitlines()
    versions = [json.loads(row) for row in rows]
    assert [each["value"]["code"] for each in versions] == ["return 3", "return 2", "return 1"]
    first = str(versions[2]["rev"])
    assert await moat.fine("code", "x", "get", "--rev", first) == "return 1\n"
    assert "is back" in await moat.fine("code", "x", "revert")
    assert await moat.fine("code", "x") == "return 2\n"
    await moat.fine("code", "x", "revert", first)
    assert await moat.fine("code", "x") == "return 1\n"
    await moat.fine("code", "x", "delete")
    assert (await moat("code", "x")).code == 3
    await moat.fine("code", "x", "revert")
    assert await moat.fine("code", "x") == "return 1\n"
    ended = await moat("code", "x", "revert", "9999")
    assert (ended.code, ended.error_line) == (3, "moat: no version of procedure x of revision 9999")


@pytest.mark.parametrize("flavour", ["-a", "-A", "-t"])
async def test_code_can_be_run_here(moat: Moat, flavour: str) -> None:
    text = "import adder\nreturn adder.add(a, b)"
    module = "def add(a, b): return a + b"
    await moat.fine("module", "adder", "set", "-s", "-", stdin=module)
    options = ["--var", "a", "--var", "b", "-e", "b", "2", "--require", "adder", flavour]
    await moat.fine("code", "sum", "set", "-s", "-", *options, stdin=text)
    assert await moat.fine("code", "sum", "run", "-e", "a", "40") == "42\n"
    ended = await moat("code", "sum", "run")
    assert (ended.code, ended.error_line) == (1, "moat: missing variable a")
    assert (await moat("code", "nothing", "run")).code == 3


async def test_the_mark_that_editors_put_first_is_no_part_of_the_text(
    moat: Moat, tmp_path: pathlib.Path
) -> None:
    marked = b"\xef\xbb\xbfreturn 42"
    await anyio.Path(tmp_path, "x.py").write_bytes(marked)
    await moat.fine("code", "x", "set", "-s", str(tmp_path / "x.py"))
    await moat.fine("code", "y", "set", "-s", "-", stdin=marked)
    assert await moat.fine("code", "x") == await moat.fine("code", "y") == "return 42\n"


async def test_a_module_that_an_installed_one_hides_is_told(
    moat: Moat, client: moat_kv.Client
) -> None:
    ended = await moat("module", "json.more", "set", "-s", "-", stdin="X = 1")
    assert ended.code == 0
    assert "a module json is installed here, and goes before this one" in ended.error_line
    await moat.fine("module", "json", "set", "-s", "-", "--override", stdin="X = 1")
    place = P(":.moat.kv.code.module.json")
    assert (await client.get(place)).value == {"code": "X = 1", "override": True}
    await moat.fine("module", "json", "set", "--no-override")
    assert (await client.get(place)).value["override"] is False


async def test_variables_and_requirements_can_be_taken_away(
    moat: Moat, client: moat_kv.Client
) -> None:
    options = ["--var", "a", "--require", "m.n"]
    await moat.fine("code", "x", "set", "-s", "-", *options, stdin="return 1")
    await moat.fine("code", "x", "set", "--var", "-", "--require", "-")
    value = (await client.get(P(":.moat.kv.code.proc.x"))).value
    assert (value["vars"], value["requires"]) == ([], [])
    ended = await moat("code", "x", "set", "--require", "-", "--require", "m")
    assert ended.code == 128
    assert "- stands alone" in ended.error_line


async def test_listing_code_and_modules(moat: Moat) -> None:
    await moat.fine("code", "a.b", "set", "-s", "-", "--var", "x", "-i", "why", stdin="pass")
    await moat.fine("module", "m.n", "set", "-s", "-", stdin="x = 1")
    lines = (await moat.fine("code", ":", "list")).splitlines()
    assert lines[0].split() == ["PATH", "KIND", "VARS", "AT", "INFO"]
    assert lines[1].startswith("a.b   async  x     20")
    assert await moat.fine("module", ":", "list", "-o", "value") == "m.n\n"
    assert await moat.fine("code", "a", "list", "-o", "value") == "a.b\n"
    ended = await moat("code", "a")
    assert ended.error_line == "moat: no procedure a; `list` shows what is below it (1)"


# Folders ----------------------------------------------------------------------------------------


async def test_the_example_is_stored_by_its_manifest(moat: Moat, client: moat_kv.Client) -> None:
    folder = str(EXAMPLES / "onewire")
    now = time.time()
    out = await moat.fine("code", "load", folder, "-n", "n1", "-g", "heating")
    assert out == "stored 3 modules, 2 procedures, 2 jobs\n"
    names = (await moat.fine("module", ":", "list", "-o", "value")).split()
    assert set(names) == {"onewire.owserver", "onewire.bus", "onewire.follow"}
    text = await anyio.Path(folder, "temperatures.py").read_text()
    assert await moat.fine("code", "onewire.temperatures", "-o", "value") == text
    job = await client.get(P(":.moat.kv.run.at.n1.heating.onewire.temperatures"))
    assert job.value["code"] == P("onewire.temperatures")
    assert now <= job.value["target"] <= time.time()
    first = await client.get(P(":.moat.kv.code.module.onewire.bus"))
    await moat.fine("module", "load", folder, "--no-jobs")
    assert (await client.get(P(":.moat.kv.code.module.onewire.bus"))).rev == first.rev


def folder_with(tmp_path: pathlib.Path, manifest_text: str, **files: str) -> pathlib.Path:
    (tmp_path / "manifest.yaml").write_text(manifest_text)
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "a mapping with modules, code or jobs", id="empty"),
        pytest.param("modules: 3", "modules: a list", id="no list"),
        pytest.param("codes: []", "codes: unknown", id="section"),
        pytest.param("code: [x]", "code 1: a mapping", id="item"),
        pytest.param(
            "code: [{file: good.py, path: a, x: 1}]", "code a: x: unknown; known: ", id="key"
        ),
        pytest.param("code: [{file: good.py, path: a..b}]", "code a..b: path: bad path", id="path"),
        pytest.param("code: [{path: a}]", "code a: file: a file's name", id="no file"),
        pytest.param(
            "modules: [{file: good.py, path: a, override: 1}]",
            "modules a: override: true or false",
            id="override",
        ),
        pytest.param("code: [{file: none.py, path: a}]", "none.py: No such file", id="file"),
        pytest.param(
            "code: [{file: good.py, path: a}, {file: good.py, path: a}]", "comes twice", id="twice"
        ),
        pytest.param("code: [{file: bad.py, path: a}]", "bad.py: line 2, column", id="syntax"),
        pytest.param("modules: [{file: bad.py, path: a}]", "bad.py: line 2", id="module syntax"),
        pytest.param("modules: [{file: good.py, path: 'a:1'}]", "cannot be a module", id="name"),
        pytest.param("jobs: [{run: on, path: a, code: b}]", "jobs a: run: one of", id="run"),
        pytest.param("jobs: [{run: at, path: a}]", "jobs a: code: a path", id="job's code"),
        pytest.param(
            "jobs: [{run: any, path: a, code: b, node: c}]", "jobs a: node: only with", id="node"
        ),
        pytest.param(
            "jobs: [{run: any, path: a, code: b, target: x}]", "target: seconds", id="target"
        ),
        pytest.param(
            "jobs: [{run: any, path: a, code: b, delay: -1}]", "delay: 0 or more", id="delay"
        ),
        pytest.param(
            "jobs: [{run: any, path: a, code: b, limits: {ram: 5}}]",
            "jobs a: limits.ram: there is no such limit",
            id="limit",
        ),
        pytest.param(
            "jobs: [{run: any, path: a, code: b, env: {PORT: 5}}]",
            "jobs a: env: a mapping from names to texts",
            id="environment",
        ),
        pytest.param("a: [", "not YAML", id="no YAML"),
    ],
)
async def test_a_wrong_manifest_stores_nothing(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path, text: str, message: str
) -> None:
    folder_with(tmp_path, text, good="pass", bad="pass\nx = (")
    ended = await moat("code", "load", str(tmp_path))
    assert message in ended.error_line
    assert ended.code in (1, 128)
    assert await client.list(P(":")) == []


def test_a_manifest_is_read_whole(tmp_path: pathlib.Path) -> None:
    folder = folder_with(
        tmp_path,
        "code: [{file: a.py, path: x.a, is_async: null, vars: [v], default: {v: 1}, info: i}]\n"
        "jobs:\n"
        "- {run: at, path: j, code: x.a, node: n9, target: 5, data: {v: 2}}\n"
        "- {run: any, path: k, code: x.a, group: g9}\n"
        "- {run: all, path: l, code: x.a}\n"
        "- run: any\n"
        "  path: m\n"
        "  code: x.a\n"
        "  isolate: process\n"
        "  share: bus\n"
        "  env: {PORT: '5'}\n"
        "  limits: {memory_mb: 200}\n",
        a="return v",
    )
    found = manifest.read(folder)
    assert found.procedures[P("x.a")] == {
        "code": "return v",
        "is_async": None,
        "vars": ["v"],
        "default": {"v": 1},
        "info": "i",
    }
    places = [each.place(P("run"), node="n1", group=P("g1")) for each in found.jobs]
    assert places == [P("run.at.n9.g1.j"), P("run.any.g9.k"), P("run.all.g1.l"), P("run.any.g1.m")]
    assert found.jobs[0].entry(100.0) == {"code": P("x.a"), "data": {"v": 2}, "target": 105.0}
    assert "target" not in found.jobs[1].entry(100.0)
    assert found.jobs[3].entry(100.0) == {
        "code": P("x.a"),
        "isolate": "process",
        "share": "bus",
        "env": {"PORT": "5"},
        "limits": {"memory_mb": 200},
    }
    with pytest.raises(errors.BadConfig, match="No such file"):
        manifest.read(tmp_path / "nowhere")
