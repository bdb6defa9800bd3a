"""The tour tells a README that is true from one that is not, and leaves nothing behind.

Each case is a small README, run as `./dev tour` runs the real one.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.tour import blocks

ROOT = Path(__file__).parent.parent

TRUE = {
    "one_command": """
        $ echo hello
        hello
        """,
    "quiet_command_then_another": """
        $ cd /
        $ pwd
        /
        """,
    "any_text_in_a_line": """
        $ echo revision 4711 of n1
        revision ... of n1
        """,
    "any_lines": """
        $ seq 5
        1
        ...
        5
        """,
    "announced_exit_code": """
        $ sh -c 'echo no such entry >&2; exit 3'  # exit 3
        no such entry
        """,
    "exit_code_is_kept_for_the_next_command": """
        $ (exit 4)  # exit 4
        $ echo $?
        4
        """,
    "here_document_as_it_is_pasted": """
        $ cat > script.py <<'EOF'
        print("$ not a prompt")

        print("> nor this")
        EOF
        $ python3 script.py
        ... not a prompt
        ...> nor this
        """,
    "continued_lines": """
        $ echo one \\
            two
        one two
        $ for i in 1 2
        > do echo $i; done
        1
        2
        """,
    "other_terminal_answers_later": """
        $ mkfifo line
        terminal 2$ cat line; cat line
        $ echo first > line
        terminal 2:
        first
        $ echo second > line
        terminal 2:
        second
        """,
    "other_terminal_is_stopped_and_used_again": """
        terminal 2$ echo started; sleep 1000
        started
        terminal 2$ ^C
        terminal 2$ echo free again
        free again
        """,
    "other_terminal_whose_rest_does_not_matter": """
        terminal 2$ seq 100; echo ready; seq 5
        1
        ...
        terminal 2:
        ready
        ...
        """,
    "output_without_line_end": """
        $ printf 42
        42
        """,
    "commands_see_a_terminal_without_colours": """
        $ test -t 0 && test -t 1 && tput cols && printf '\\033[1mbold\\033[0m\\n'
        80
        bold
        """,
    "home_and_folder_are_new": """
        $ find ~ -type f | wc -l
        0
        $ touch made-here && ls
        README.md  made-here
        """,
}

# The last column is what has to be said.
FALSE = {
    "other_output": ("$ echo hello\ngood-bye", "-good-bye\n    +hello"),
    "more_output": ("$ echo hello; echo more\nhello", "+more"),
    "less_output": ("$ echo hello\nhello\nmore", "-more"),
    "unannounced_output": ("$ echo hello", "+hello"),
    "dots_do_not_cross_lines": ("$ printf 'a\\nb c\\n'\na ... c", "-a ... c"),
    "unannounced_exit_code": ("$ echo hi; false\nhi", "`$ echo hi; false` ended with 1, not 0"),
    "other_exit_code": ("$ true  # exit 3", "ended with 0, not 3"),
    "no_such_command": ("$ moat-that-does-not-exist", "command not found"),
    "other_terminal_says_something_else": (
        "terminal 2$ echo hello; sleep 1000\ngood-bye",
        "-good-bye\n    +hello",
    ),
    "other_terminal_says_more": (
        "terminal 2$ printf 'hello\\nmore\\n'; sleep 1000\nhello",
        "terminal 2 also printed: more",
    ),
    "other_terminal_fails_and_tells_why": (
        "terminal 2$ echo no room; false\n...\nterminal 2$ true",
        "terminal 2 shows: no room",
    ),
    # The second command is typed when the first one has ended.
    "other_terminal_fails": (
        "terminal 2$ false\nterminal 2$ true",
        "`terminal 2$ false` ended with 1, not 0",
    ),
    "nothing_to_stop": ("terminal 2$ ^C", "nothing runs there"),
}
FALSE_AFTER_THE_LIMIT = {
    "command_without_end": ("$ sleep 1000", "still ran after 1 s"),
    "other_terminal_says_nothing": ("terminal 2$ sleep 1000\nhello", "-hello"),
    "other_terminal_is_taken": (
        "terminal 2$ sleep 1000\nterminal 2$ echo hello\nhello",
        "the terminal is taken: `terminal 2$ sleep 1000` still runs there",
    ),
}
DOES_NOT_STOP = "terminal 2$ sh -c 'trap : INT HUP; echo up; while :; do sleep 1; done'\nup"


def write_readme(folder: Path, block: str) -> Path:
    lines = [line.removeprefix("        ") for line in block.strip("\n").rstrip().split("\n")]
    text = "\n".join(["# A thing", "", "```", "$ false", "```", "", "```console", *lines, "```"])
    readme = folder / "docs" / "README.md"
    readme.parent.mkdir()
    readme.write_text(text + "\n")
    return readme


def tour_command(
    readme: Path, *, port: int = 0, limit_s: int = 20, stop_s: int = 10
) -> Sequence[str]:
    options = ["--port", str(port), "--limit", str(limit_s), "--stop", str(stop_s)]
    return [sys.executable, "-m", "tests.tour", str(readme), *options]


def take_tour(
    readme: Path, *, port: int = 0, limit_s: int = 20, stop_s: int = 10
) -> subprocess.CompletedProcess[str]:
    command = tour_command(readme, port=port, limit_s=limit_s, stop_s=stop_s)
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50
    )


def is_running(pid: int) -> bool:
    """Not so for a process that has ended and that nobody has asked for its exit code."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return state.stdout.strip()[:1] not in {"", "Z"}


@pytest.mark.parametrize("block", TRUE.values(), ids=TRUE.keys())
def test_true_readme_passes(tmp_path: Path, block: str) -> None:
    readme = write_readme(tmp_path, block)
    result = take_tour(readme)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^[1-9]\d* passed, 0 failed$", result.stdout, re.MULTILINE)
    assert [path.name for path in readme.parent.iterdir()] == ["README.md"]


@pytest.mark.parametrize(("block", "said"), FALSE.values(), ids=FALSE.keys())
def test_false_readme_is_flagged(tmp_path: Path, block: str, said: str) -> None:
    assert_flagged(take_tour(write_readme(tmp_path, block)), said)


@pytest.mark.parametrize(
    ("block", "said"), FALSE_AFTER_THE_LIMIT.values(), ids=FALSE_AFTER_THE_LIMIT.keys()
)
def test_readme_is_flagged_after_the_limit(tmp_path: Path, block: str, said: str) -> None:
    assert_flagged(take_tour(write_readme(tmp_path, block), limit_s=1), said)


def test_what_does_not_stop_is_flagged(tmp_path: Path) -> None:
    result = take_tour(write_readme(tmp_path, DOES_NOT_STOP), stop_s=1)
    assert_flagged(result, "did not stop within 1 s of ^C")


def assert_flagged(result: subprocess.CompletedProcess[str], said: str) -> None:
    assert result.returncode == 1, result.stdout + result.stderr
    assert said in result.stdout
    assert re.search(r"^\d+ passed, [1-9]\d* failed$", result.stdout, re.MULTILINE)


def test_difference_is_shown_with_its_line(tmp_path: Path) -> None:
    block = "$ echo fine\nfine\n$ printf 'one\\ntwo\\n'\none\nthree"
    result = take_tour(write_readme(tmp_path, block))
    assert "README.md:8    ok     $ echo fine\n" in result.stdout
    assert "README.md:10   FAILED $ printf" in result.stdout
    assert "    -three\n    +two\n" in result.stdout


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc on this system")
def test_program_that_outlives_its_terminal_is_named_and_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    block = f"$ (setsid sh -c 'echo $$ > {pid_file}; exec sleep 1000' &)"
    block += f"\n$ until [ -s {pid_file} ]; do :; done"
    result = take_tour(write_readme(tmp_path, block), stop_s=1)
    assert result.returncode == 1
    assert "outlived its terminal: sleep 1000" in result.stdout
    assert not is_running(int(pid_file.read_text()))


def test_ended_tour_leaves_nothing_running(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    block = f"terminal 2$ sh -c 'echo $$ > {pid_file}; exec sleep 1000'\n$ sleep 1000"
    command = tour_command(write_readme(tmp_path, block))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tour:
        while not (pid_file.exists() and pid_file.read_text().strip()):
            assert tour.poll() is None
            time.sleep(0.02)
        tour.send_signal(signal.SIGTERM)
        tour.communicate(timeout=40)
    assert tour.returncode == 143
    assert not is_running(int(pid_file.read_text()))


def test_taken_port_is_said_before_anything_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = take_tour(write_readme(tmp_path, "$ echo hello\nhello"), port=port)
    assert result.returncode == 2
    assert f"something listens on port {port}" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("# Only a title\n", "nothing to run", id="no_block"),
        pytest.param("```\n$ echo hello\n```\n", "nothing to run", id="no_console_block"),
        pytest.param("```console\n$ echo hello\n", "line 1: this block has no end", id="no_end"),
        pytest.param("```console\nhello\n```\n", "line 2: output before", id="no_command"),
        pytest.param("```console\n$ cat <<EOF\n```\n", "line 2: the block ends", id="no_here_end"),
    ],
)
def test_readme_that_cannot_be_run_is_refused(text: str, why: str) -> None:
    with pytest.raises(blocks.BadReadmeError, match=why):
        blocks.parse(text)


def test_missing_readme_is_one_line(tmp_path: Path) -> None:
    result = take_tour(tmp_path / "README.md")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
