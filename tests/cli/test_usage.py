"""Exit codes and error lines: bad usage is 128 everywhere, and one line says what is wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import asyncclick as click
import pytest

from moat_kv import errors
from moat_kv_cli import command, failures, main, verbs
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio


def every_command() -> Iterator[tuple[list[str], click.Command]]:
    """All commands and groups with the words that lead to them."""
    waiting: list[tuple[list[str], click.Command]] = [([], main.kv)]
    while waiting:
        words, cmd = waiting.pop()
        yield words, cmd
        if not isinstance(cmd, click.Group):
            continue
        ctx = click.Context(cmd)
        if isinstance(cmd, verbs.PathGroup):
            waiting += [([*words, "a.b", name], each) for name, each in cmd.commands.items()]
            waiting += [([*words, name], each) for name, each in cmd.others.items()]
        else:
            for name in cmd.list_commands(ctx):
                each = cmd.get_command(ctx, name)
                assert each is not None
                waiting.append(([*words, name], each))


COMMANDS = list(every_command())
GROUPS = [words for words, cmd in COMMANDS if isinstance(cmd, click.Group)]


def name_of(words: list[str]) -> str:
    return " ".join(words) or "(none)"


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS], ids=name_of)
async def test_every_command_has_help_with_an_example(offline: Moat, words: list[str]) -> None:
    ended = await offline(*words, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: moat kv")
    example = ended.out.partition("\nExample:\n")[2]
    assert "moat kv" in example


@pytest.mark.parametrize("words", GROUPS, ids=name_of)
async def test_a_bare_group_prints_its_help_and_is_bad_usage(
    offline: Moat, words: list[str]
) -> None:
    ended = await offline(*words)
    assert ended.code == 128
    assert ended.out == ""
    assert ended.err.startswith("Usage: moat kv")


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS], ids=name_of)
async def test_an_unknown_option_is_bad_usage_everywhere(offline: Moat, words: list[str]) -> None:
    ended = await offline(*words, "--no-such-option")
    assert ended.code == 128
    assert "--no-such-option" in ended.error_line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        pytest.param("no-such", "moat kv: no command 'no-such'; there are: server, data", id="cmd"),
        pytest.param("data a no-such", "no verb 'no-such'; after a path may come: get", id="verb"),
        pytest.param(
            "data list",
            "'list' is a verb, and a path comes first: `moat kv data : list`",
            id="verb for a path",
        ),
        pytest.param("data set -e : 1", "`moat kv data : set` for the root", id="verb, options"),
        pytest.param(
            "data get a.b", "the path comes before the verb: moat kv data a.b get", id="verb, path"
        ),
        pytest.param("data a..b", "bad path 'a..b'", id="path text"),
        pytest.param("data a: get", "bad path", id="path escape"),
        pytest.param(
            "data a set -e : 12x",
            "-e ':': '12x' is no literal; a text is given with -v",
            id="literal",
        ),
        pytest.param("data a set -p : b..c", "-p ':': bad path", id="path value"),
        pytest.param("data a set -v x..y z", "-v 'x..y': bad path", id="attribute name"),
        pytest.param("data a set", "no value; give one with -v, -e, -p or -y", id="no value"),
        pytest.param("data a set -e : 1 -v : x", "value is given twice", id="whole twice"),
        pytest.param("data a set -e a 1 -e a 2", "-e 'a': given twice", id="attribute twice"),
        pytest.param("data a set -e a 1 -v a.b x", "lie within each other", id="within"),
        pytest.param("data a set -e : -", "goes with the verb `delete`", id="removes the whole"),
        pytest.param("data a set -y /no/such/file", "-y: /no/such/file: No such file", id="file"),
        pytest.param("data a -o html", "'html' is not one of", id="output"),
        pytest.param("data : delete -r", "that is the whole tree", id="all"),
        pytest.param("data a delete -r --expect 1", "--expect is for one entry", id="expect"),
        pytest.param("data + watch --match a", "belong into the --match pattern", id="pattern"),
        pytest.param("code a set", "nothing to set", id="no code"),
        pytest.param("run set", "no command 'set'; there are: all, everything, at", id="command"),
        pytest.param("code : set -s /dev/null", "needs a path below the root", id="no path"),
        pytest.param("module a.1b set -s /dev/null", "cannot be a module's name", id="module name"),
        pytest.param("server 3", "a server's name starts with a letter", id="server's name"),
        pytest.param("server n1 --host 0.0.0.0", "there is no login", id="open to all"),
        pytest.param("server n1 --sync 1h", "'1h' is no time", id="duration"),
        pytest.param(
            "server n1 --port 0 --engine x", "no engine 'x'; there is: memory", id="engine"
        ),
        pytest.param("data a --config /no/such", "/no/such: there is no such file", id="config"),
        pytest.param("data a --url http://x", "is no address of a server", id="url"),
        pytest.param("data a set -e x", "moat kv data PATH set: Option '-e' requires 2", id="few"),
        pytest.param("lock --wait nan a -- true", "--wait': 'nan' is no number", id="wait"),
        pytest.param("lock --ttl inf a -- true", "--ttl': 'inf' is no number", id="ttl"),
        pytest.param("lock : -- true", "a path below the root is needed", id="root lock"),
        pytest.param("run at a set -c :", "a path below the root is needed", id="root code"),
        pytest.param("run at a set -t 1e300", "'1e300' is no time from now", id="far"),
        pytest.param("run at a set -t nan", "'nan' is no time from now", id="nan"),
        pytest.param("run at a set -r nan", "'nan' is no number", id="repeat"),
        pytest.param("run at a set -d 1e300", "at most 3.2e+10 seconds", id="long"),
        pytest.param("run at a set --max-delay -3", "0 or more, not -3.0", id="max delay"),
        pytest.param("run at a set -r 5 --cron @daily", "--cron", id="cron"),
        pytest.param("run at a set --require - --require x", "any node will do", id="tags"),
        pytest.param("error notify a -g :", "a group is a path below the root", id="group"),
        pytest.param("code a run --for nan", "--for': 'nan' is no number", id="for"),
        pytest.param("code a run --fake a={x", "--fake 'a={x': not YAML: line 1", id="fake"),
    ],
)
async def test_bad_usage_is_one_line_and_128(offline: Moat, words: str, line: str) -> None:
    ended = await offline(*words.split())
    assert line in ended.error_line
    assert ended.code == 128
    assert ended.out == ""


async def test_without_kv_the_way_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert await main.invoke(["data", "a"]) == 128
    assert capsys.readouterr().err == "moat: write `moat kv data` (--help says more)\n"


async def test_the_version_is_printed(offline: Moat) -> None:
    from moat_kv import version

    assert await offline.fine("--version") == f"moat-kv {version.VERSION}\n"


async def test_a_literal_may_be_long_but_not_endless(offline: Moat) -> None:
    ended = await offline("data", "a", "set", "-e", ":", "[" + "1," * 3000 + "]")
    assert "at most 4096 characters" in ended.error_line
    assert ended.code == 128


@pytest.mark.parametrize("literal", ["{1, 2}", "1j", "[{1}]", "...", "{(1, 2): 3}"])
async def test_literals_that_cannot_be_stored_are_named(offline: Moat, literal: str) -> None:
    ended = await offline("data", "a", "set", "-e", ":", literal)
    assert "cannot be" in ended.error_line
    assert ended.code == 128


async def test_a_server_that_is_not_there_is_2(offline: Moat) -> None:
    ended = await offline("data", "a")
    assert ended.error_line.startswith("moat: cannot connect to unix://")
    assert ended.code == 2


async def test_global_options_may_be_given_anywhere(moat: Moat, offline: Moat) -> None:
    nowhere = "unix:///no/such/socket"
    for words in (["--url", nowhere, "data", "a"], ["data", "--url", nowhere, "a"]):
        assert (await moat(*words)).code == 2
    assert (await moat("data", "a", "--url", nowhere, "-o", "json")).code == 2


async def test_the_settings_file_names_the_server_and_the_output(
    moat: Moat, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await moat.fine("data", "a", "set", "-e", ":", "[1]")
    monkeypatch.delenv("MOAT_KV_URL")
    file = tmp_path / "c.yaml"
    file.write_text(f"client: {{url: '{moat.url}'}}\noutput: jsonl\n")
    assert await moat.fine("data", "a", "--config", str(file)) == "[1]\n"
    monkeypatch.setenv("MOAT_KV_CONFIG", str(file))
    assert await moat.fine("data", "a") == "[1]\n"
    assert await moat.fine("data", "a", "-o", "yaml") == "- 1\n"


async def test_no_traceback_unless_asked_for(
    offline: Moat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: command.Invocation) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(command.Invocation, "client", broken)
    ended = await offline("data", "a")
    assert ended.error_line == "moat: ZeroDivisionError: by nothing (--debug shows where)"
    assert ended.code == 1
    ended = await offline("data", "a", "--debug")
    assert "Traceback" in ended.err
    assert ended.code == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MoatKvError("x"), 1),
        (errors.StorageFailed("f", "full"), 1),
        (errors.BadCode("p", "r", 1, 1), 1),
        (errors.RequestTimeout("get", 1), 1),
        (errors.CannotConnect("u", "r"), 2),
        (errors.Disconnected("r"), 2),
        (errors.NotFound("entry at", "a"), 3),
        (errors.Conflict("a", 1, 2), 4),
        (errors.GuardFailed("a", 1, 2), 4),
        (errors.StaleFence("a", 1, 2), 4),
        (errors.Unknown("r"), 4),
        (errors.Detached("r"), 4),
        (errors.NameTaken("member", "n"), 4),
        (errors.BadPath("a..b", "r"), 128),
        (errors.BadConfig("n", "r"), 128),
        (click.UsageError("u"), 128),
        (click.ClickException("u"), 1),
        (command.Refused("u", 4), 4),
        (KeyboardInterrupt(), 130),
        (OSError(2, "No such file", "/x"), 1),
        (ValueError("x"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert failures.exit_code(error) == code
    group = BaseExceptionGroup("g", [error])
    assert failures.exit_code(failures.root_cause(group)) == code
    line = failures.line(error)
    assert code == 130 or (line is not None and "\n" not in line)


def test_of_several_errors_ours_is_told() -> None:
    ours = errors.Conflict("a", 1, 2)
    group = ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [ours]), ours])
    assert failures.root_cause(group) is ours
