"""`moat kv code PATH run` and `moat kv run at PATH try`: all is shown, and nothing is stored."""

from __future__ import annotations

import json
import pathlib
import signal

import anyio
import pytest

import moat_kv
from moat_kv import P
from tests.cli import processes
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

LAMPS = """\
await _self.watch(_P("home.kitchen"))
async for msg in _info:
    if isinstance(msg, _cls.ChangeMsg) and "value" in msg:
        await _self.set(_P("home.power"), msg.value.lamps * watts)
    if isinstance(msg, _cls.ReadyMsg) and msg.msg == 1:
        print("all seen")
        return (await _client.get(_P("home.power"))).value
"""


async def revision(client: moat_kv.Client) -> int:
    """The server's; whatever is stored makes it another."""
    found: int = (await client.state())["revision"]
    return found


async def test_messages_output_writes_and_result_are_shown_and_nothing_is_stored(
    moat: Moat, client: moat_kv.Client
) -> None:
    await client.set(P("home.kitchen"), {"lamps": 3})
    await moat.fine("code", "home.lamps", "set", "-s", "-", stdin=LAMPS)
    before = await revision(client)
    ended = await moat("code", "home.lamps", "run", "-e", "watts", "7")
    assert (ended.code, ended.out) == (0, "all seen\n21\n")
    shown = [line.split(maxsplit=1) for line in ended.err.splitlines()]
    assert shown[0][0] == "got"
    assert shown[0][1].startswith("DetachedState  [")
    assert shown[1:] == [
        ["got", "ReadyMsg  0"],
        ["got", 'ChangeMsg home.kitchen  {"lamps": 3}'],
        ["set", "home.power  21"],
        ["got", "ReadyMsg  1"],
        ["moat:", "1 write, not stored"],
    ]
    assert await revision(client) == before
    ended = await moat("code", "home.lamps", "run", "-e", "watts", "7", "-q", "-o", "json")
    assert (ended.code, ended.out, ended.err) == (0, "all seen\n21\n", "")


async def test_faked_entries_are_seen_and_others_come_from_the_server(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path
) -> None:
    await client.set(P("a.real"), 1)
    await client.set(P("a.gone"), 2)
    await client.set(P("a.b.deep"), 3)
    text = """
rows = {str(row.path): row.value async for row in _client.get_tree(_P("a"))}
names = [child.name for child in await _client.list(_P("a"))]
missing = "value" in await _client.get(_P("a.gone"))
async with _client.mirror(_P("a")) as root:
    deep = root.get("b").get("deep").value
return [rows, sorted(names), missing, deep]
"""
    fakes = tmp_path / "fakes.yaml"
    await anyio.Path(fakes).write_text("a.file: {x: [1]}\na.both: file\n")
    options = ["--fakes", str(fakes), "--fake", "a.both=flag", "--fake", "a.gone="]
    ended = await moat("code", "x", "run", "-s", "-", *options, "-o", "json", stdin=text)
    rows, names, missing, deep = json.loads(ended.out)
    assert rows == {"real": 1, "b.deep": 3, "file": {"x": [1]}, "both": "flag"}
    assert names == ["b", "both", "file", "real"]
    assert (missing, deep) == (False, 3)


async def test_script_sees_its_own_writes_as_a_server_has_them(
    moat: Moat, client: moat_kv.Client
) -> None:
    await client.set(P("n"), 1)
    text = """
from moat_kv.errors import Conflict
first = await _client.get(_P("n"))
await _self.set(_P("n"), 2, chain=first.chain)
try:
    await _self.set(_P("n"), 3, chain=first.chain)
except Conflict:
    await _client.patch(_P("n"), "add", 10)
await _client.set(_P("new"), 0, expect=0)
await _client.batch([_client.op_set(_P("b"), 5), _client.op_delete(_P("new"))])
await _client.send(_P("bell"), "ding")
return [(await _client.get(_P(p))).get("value") for p in ("n", "new", "b")]
"""
    before = await revision(client)
    ended = await moat("code", "x", "run", "-s", "-", "-o", "json", stdin=text)
    assert json.loads(ended.out) == [12, None, 5]
    assert [line.split(maxsplit=1)[1] for line in ended.err.splitlines()] == [
        "n  2",
        "n  12",
        "new  0",
        "b  5",
        "new",
        "bell  ding",
        "6 writes, not stored",
    ]
    assert await revision(client) == before


async def test_writes_are_let_through_when_asked_but_for_faked_entries(
    moat: Moat, client: moat_kv.Client
) -> None:
    await client.set(P("n"), 1)
    text = """
from moat_kv.errors import Conflict
first = await _client.get(_P("n"))
await _self.set(_P("n"), 2, chain=first.chain)
second = await _client.patch(_P("n"), "add", 10)
await _client.batch([_client.op_set(_P("b"), 5), _client.op_set(_P("faked"), 5)])
await _self.set(_P("faked"), 6)
await _client.set(_P("other"), 1)
try:
    await _client.set(_P("there"), 1, expect=0)
except Conflict:
    return second.value
"""
    await client.set(P("there"), 0)
    options = ["--real", "--fake", "faked=0"]
    ended = await moat("code", "x", "run", "-s", "-", *options, stdin=text)
    assert (ended.code, ended.out) == (0, "12\n")
    assert "writes, let through to the server" in ended.err
    found = {
        path: (await client.get(P(path))).get("value") for path in ("n", "b", "faked", "other")
    }
    assert found == {"n": 12, "b": 5, "faked": None, "other": 1}


@pytest.mark.parametrize(
    ("flag", "lines"),
    [("-a", ["return await _self.get(_P('n'))"]), ("-A", ["return _client.get(_P('n')).value"])],
    ids=["async", "sync"],
)
async def test_file_is_run_before_it_is_stored(
    moat: Moat, client: moat_kv.Client, tmp_path: pathlib.Path, flag: str, lines: list[str]
) -> None:
    await client.set(P("n"), 5)
    script = tmp_path / "x.py"
    await anyio.Path(script).write_text("\n".join(lines))
    assert await moat.fine("code", "x", "run", flag, "-s", str(script)) == "5\n"
    assert (await moat("code", "x")).code == 3


async def test_error_is_shown_with_the_lines_as_written(moat: Moat, client: moat_kv.Client) -> None:
    text = "import math\n\nasync def half():\n    return 1 / divisor\n\nreturn await half()\n"
    await moat.fine("code", "ratio", "set", "-s", "-", stdin=text)
    before = await revision(client)
    ended = await moat("code", "ratio", "run", "-e", "divisor", "0")
    assert (ended.code, ended.out) == (1, "")
    lines = ended.err.splitlines()
    assert "line 6, in procedure" in lines[1]
    assert lines[2].strip() == "return await half()"
    assert "line 4, in half" in ended.err
    assert lines[-1] == "ZeroDivisionError: division by zero"
    ended = await moat("code", "ratio", "run")
    assert "NameError: name 'divisor' is not defined" in ended.err
    text = "await _self.error(_P('a.thing'), message='too hot')"
    ended = await moat("code", "ratio", "run", "-s", "-", stdin=text)
    assert "error   a.thing  too hot" in ended.err
    assert ended.code == 1
    assert await revision(client) == before


async def test_log_records_are_shown_in_their_place(moat: Moat) -> None:
    text = "_log.info('begun %d', 1)\n_log.debug('x')\nawait _self.setup_done()\n_log.error('hot')"
    ended = await moat("code", "x", "run", "-s", "-", stdin=text)
    assert ended.err.splitlines() == ["info    begun 1", "works   setup_done", "error   hot"]
    ended = await moat("code", "x", "run", "-q", "-s", "-", stdin="_log.info('begun')\nreturn 1")
    assert (ended.out, ended.err) == ("1\n", "")


async def test_time_limit_ends_a_script_that_stays(moat: Moat) -> None:
    text = "async for msg in _info:\n    pass"
    ended = await moat("code", "x", "run", "--for", "0.2", "-s", "-", stdin=text)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.splitlines()[-1] == "moat: ended after 0.2 s, as --for says"


async def test_changes_on_the_server_reach_the_script(moat: Moat, client: moat_kv.Client) -> None:
    text = """
await _self.watch(_P("n"))
await _self.monitor(_P("bell"))
await _client.set(_P("begun"), 1)
async for msg in _info:
    if isinstance(msg, _cls.ChangeMsg):
        await _self.timer(0.01)
    if isinstance(msg, _cls.MQTTmsg):
        return msg.value
"""

    async def ring() -> None:
        # Until it listens, nobody hears it.
        while True:
            await client.set(P("n"), 1)
            await client.send(P("bell.door"), "ding")
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ring)
        ended = await moat("code", "x", "run", "-s", "-", stdin=text)
        tasks.cancel_scope.cancel()
    assert (ended.code, ended.out) == (0, "ding\n"), ended
    assert "got     TimerMsg" in ended.err or "got     MQTTmsg bell.door  ding" in ended.err


async def test_job_is_tried_with_its_data_and_without_a_claim(
    moat: Moat, client: moat_kv.Client
) -> None:
    await moat.fine("code", "c", "set", "-s", "-", "--var", "a", stdin="return [a, b, _self.node]")
    await moat.fine("run", "-n", "pi3", "at", "j", "set", "-c", "c", "-e", "a", "1", "-e", "b", "2")
    before = await revision(client)
    out = await moat.fine("run", "-n", "pi3", "at", "j", "try", "-e", "b", "3", "-o", "json")
    assert json.loads(out) == [1, 3, "pi3"]
    assert await revision(client) == before
    ended = await moat("run", "at", "nothing", "try")
    assert ended.code == 3
    await moat.fine("run", "at", "k", "set", "-c", "c")
    ended = await moat("run", "at", "k", "try")
    assert (ended.code, ended.error_line) == (1, "moat: missing variable a")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--fake a", "write PATH=VALUE"),
        ("--fake a..b=1", "bad path"),
        ("-A", "go with -s FILE"),
        ("--for 0", "0.0 is not in the range"),
        ("-e : 3", "the arguments are a mapping"),
    ],
)
async def test_bad_usage_is_told(moat: Moat, words: str, says: str) -> None:
    ended = await moat("code", "x", "run", *words.split())
    assert ended.code in (1, 128)
    assert says in ended.error_line


async def test_procedure_gets_the_event_loop_that_it_asks_for(
    moat: Moat, client: moat_kv.Client, anyio_backend: str
) -> None:
    other = {"asyncio": "trio", "trio": "asyncio"}[anyio_backend]
    await moat.fine(
        "code",
        "x",
        "set",
        "-s",
        "-",
        stdin="import sniffio\nreturn sniffio.current_async_library()",
    )
    place = P(":.moat.kv.code.proc.x")
    stored = (await client.get(place)).value
    await client.set(place, {**stored, "backend": other})
    assert await moat.fine("code", "x", "run") == f"{other}\n"


def test_interrupt_ends_it_and_says_what_became_of_the_writes(tmp_path: pathlib.Path) -> None:
    """As a user has it, with processes of their own."""
    script = tmp_path / "x.py"
    script.write_text(
        "await _self.set(_P('x'), 1)\nprint('begun', flush=True)\nasync for msg in _info: pass\n"
    )
    server = processes.staying(
        tmp_path, "server", "n1", "--engine", "memory", "--unix", f"{tmp_path}/s"
    )
    with server as (_server, line):
        assert "ready" in line
        with processes.staying(tmp_path, "code", "x", "run", "-s", str(script)) as (tried, begun):
            assert begun == "begun\n"
            tried.send_signal(signal.SIGINT)
            assert tried.stderr is not None
            assert "moat: 1 write, not stored\n" in tried.stderr.read()
            assert tried.wait(processes.PATIENCE_S) == 130


async def test_stubs_are_written_but_over_nobody_elses_file(
    moat: Moat, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "scripts"
    await anyio.Path(folder).mkdir()
    place = folder / "__builtins__.pyi"
    for _ in range(2):
        assert await moat.fine("code", "stubs", str(folder)) == f"{place}\n"
    assert "_self as _self" in place.read_text()
    place.write_text("x: int\n")
    ended = await moat("code", "stubs", str(folder))
    assert (ended.code, "is there already" in ended.error_line) == (1, True)
    assert (await moat("code", "stubs", str(tmp_path / "nowhere"))).code == 128
