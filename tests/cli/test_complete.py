"""Completion in the shell: of commands, options, verbs, and of paths from the tree."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import anyio
import pytest

import moat_kv
from moat_kv import P
from moat_kv.client import error_record
from moat_kv_cli import complete
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio


@pytest.fixture
async def filled(moat: Moat, client: moat_kv.Client) -> None:
    for path in ("one.two.three", "one.twenty", "one.x:_y", ":.moat.z", "two", ":5", "two:1"):
        await client.set(P(path), 1)
    await client.set(P(":.moat.kv.code.proc.the.answer"), {"code": "return 42"})
    await client.set(P(":.moat.kv.run.at.n1.g1.blink"), {"code": P("the.answer")})
    await client.set(P(":.moat.kv.run.all.heating.pump"), {"code": P("the.answer")})
    await error_record.record(client, "run", P("one.bad"), node="n1", message="m")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("moat kv da", ["word data"]),
        ("moat kv data ", ["part :.moat", "part one", "part two", "word :5"]),
        ("moat kv data one.tw", ["part one.two", "word one.twenty"]),
        ("moat kv data one.", ["part one.two", "word one.twenty", "word one.x:_y"]),
        ("moat kv data one.x:", ["word one.x:_y"]),
        ("moat kv data two:", ["word two:1"]),
        ("moat kv data :", ["part :.moat", "word :5"]),
        ("moat kv data :.moat.", ["part :.moat.kv", "word :.moat.z"]),
        ("moat kv data 'one.tw", ["part one.two", "word one.twenty"]),
        ("moat kv data nothing.", []),
        ("moat kv data one.two.three wa", ["word watch"]),
        ("moat kv data one.two.three --lo", ["word --long"]),
        ("moat kv data one.two.three -o js", ["word json", "word jsonl"]),
        ("moat kv data x set -y ", ["file"]),
        ("moat kv code th", ["part the"]),
        ("moat kv code the.", ["word the.answer"]),
        ("moat kv code lo", ["word load"]),
        ("moat kv code load ", ["file"]),
        ("moat kv run -n n1 -g g1 at ", ["word blink"]),
        ("moat kv data x update --strip one.tw", ["part one.two", "word one.twenty"]),
        ("moat kv run at x set -c ", ["part the"]),
        ("moat kv run at x set -c the.", ["word the.answer"]),
        ("moat kv run -n n1 -g g1 at x set -C b", ["word blink"]),
        ("moat kv run -n ", ["word n1"]),
        ("moat kv run -g ", ["word default", "word heating"]),
        ("moat kv run -g h", ["word heating"]),
        ("moat kv error show ", ["word one.bad"]),
        ("moat kv error list x", []),
        ("moat kv run -", ["word -n", "word --node", "word -g", "word --group", "word --help"]),
        ("moat kv completion ", ["word bash", "word fish", "word zsh"]),
        ("moat kv no-such ", []),
    ],
)
async def test_what_may_stand_next(line: str, expected: list[str]) -> None:
    found = await complete.candidates(line)
    assert sorted(f"{kind} {text}".rstrip() for kind, text in found) == sorted(expected)


async def test_without_a_server_commands_complete_and_paths_do_not(offline: Moat) -> None:
    assert await complete.candidates("moat kv data a.b ge") == [("word", "get")]
    with pytest.raises(moat_kv.errors.CannotConnect):
        await complete.candidates("moat kv data a")


@pytest.mark.parametrize(
    ("line", "words", "typed"),
    [
        ("moat kv da", ["kv"], "da"),
        ("moat kv data ", ["kv", "data"], ""),
        ("moat", [], "moat"),
        ("moat kv 'a b", ["kv"], "a b"),
        ('moat kv "a b" c\\ d', ["kv", "a b"], "c d"),
        ("moat kv a#b", ["kv"], "a#b"),
    ],
)
def test_lines_are_split_as_a_shell_does(line: str, words: list[str], typed: str) -> None:
    assert complete.split(line) == (words, typed)


@pytest.mark.usefixtures("filled")
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
async def test_bash_completes_paths_with_colons(moat: Moat, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "moat"
    root = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join(map(str, (root, root / "runner", root / "cli")))
    program.write_text(f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} -m moat_kv_cli "$@"\n')
    program.chmod(0o755)
    script = (await moat.fine("completion", "bash")) + (
        'COMP_LINE="moat kv data :.moat.k" COMP_POINT=21\n'
        "COMP_WORDS=(moat kv data : .moat.k) COMP_CWORD=4 COMP_WORDBREAKS=' :='\n"
        "compopt() { :; }\n"
        f'_moat_complete {program}; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    )
    done = await anyio.run_process(["bash", "-c", script], stderr=subprocess.STDOUT)
    assert done.stdout.decode() == ".moat.kv\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
async def test_scripts_are_read_by_their_shells(offline: Moat, shell: str) -> None:
    script = await offline.fine("completion", shell)
    if shutil.which(shell) is None:
        assert "_MOAT_COMPLETE" in script
        return
    done = await anyio.run_process([shell, "-n", "-c", script])
    assert done.returncode == 0
