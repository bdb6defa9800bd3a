"""A README's console blocks as steps, and the pattern of what a step has to print.

`__main__` parses with it and `walk` compares with it. Pure: text in, values out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

READER = 0  # the number of the terminal of plain `$` lines

_FENCE = re.compile(r"(?P<indent>\s*)(?P<marks>```+|~~~+)\s*(?P<kind>\S*)")
_PROMPT = re.compile(r"(?:terminal (?P<number>\d+))?\$ (?P<command>.*)")
_LOOK = re.compile(r"terminal (?P<number>\d+):")
_HERE_DOCUMENT = re.compile(r"<<-?\s*['\"]?(?P<end>\w+)")
_EXIT_CODE = re.compile(r"\s#\s*exit (?P<code>\d+)\s*$")


class BadReadmeError(Exception):
    """The README cannot be run: a block is malformed, or there is nothing to run."""


@dataclass(kw_only=True)
class Step:
    """One command with what it prints; an empty command only looks at what has been printed."""

    line: int  # in the README, from 1
    terminal: int
    command: str
    expected: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        said = _EXIT_CODE.search(self.command)
        return int(said["code"]) if said else 0

    def __str__(self) -> str:
        where = f"terminal {self.terminal}" if self.terminal != READER else ""
        if not self.command:
            return f"{where}:"
        first, *more = self.command.splitlines()
        return f"{where}$ {first}{' ...' if more else ''}"


def parse(text: str) -> list[Step]:
    """All steps of a README, in order. Raises BadReadmeError, also if there is none."""
    steps = [step for block in _console_blocks(text) for step in _steps_of(block)]
    if not steps:
        raise BadReadmeError("no command in a block marked `console`, so there is nothing to run")
    return steps


def pattern(expected: Sequence[str]) -> str:
    """A regular expression for these lines, each with its line end; `...` means any text."""
    parts = []
    for line in expected:
        if is_any(line):
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*?".join(map(re.escape, line.split("..."))) + r"\n")
    return "".join(parts)


def is_any(line: str) -> bool:
    """Whether this line of the README stands for any number of lines."""
    return line.strip() == "..."


def without_outer_blanks(lines: Sequence[str]) -> list[str]:
    text = "\n".join(lines).strip("\n")
    return text.split("\n") if text else []


def _console_blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """The blocks marked `console`, each as its lines with their numbers, without their indent."""
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if not (fence := _FENCE.match(line)):
            continue
        block = []
        for inner_number, inner in lines:
            if inner.strip() == fence["marks"]:
                break
            block.append((inner_number, inner.removeprefix(fence["indent"])))
        else:
            raise BadReadmeError(f"line {number}: this block has no end")
        if fence["kind"] == "console":
            yield block


def _steps_of(block: Sequence[tuple[int, str]]) -> Iterator[Step]:
    step = None
    lines = iter(block)
    for number, line in lines:
        started = _start_of_step(number, line, lines)
        if started:
            if step:
                yield step
            step = started
        elif step is None:
            raise BadReadmeError(f"line {number}: output before any command")
        elif line.startswith("> ") and step.command and not step.expected:
            step.command += "\n" + line[2:]
        else:
            step.expected.append(line.rstrip())
    if step:
        yield step


def _start_of_step(number: int, line: str, lines: Iterator[tuple[int, str]]) -> Step | None:
    """The step that starts with this line, if one does; takes the rest of its command."""
    if prompt := _PROMPT.fullmatch(line):
        command = _whole_command(number, prompt["command"], lines)
        return Step(line=number, terminal=int(prompt["number"] or READER), command=command)
    if look := _LOOK.fullmatch(line):
        return Step(line=number, terminal=int(look["number"]), command="")
    return None


def _whole_command(number: int, command: str, lines: Iterator[tuple[int, str]]) -> str:
    """The command with the lines that belong to it by a backslash or as a here-document."""
    document = _HERE_DOCUMENT.search(command)
    while document or command.endswith("\\"):
        try:
            line = next(lines)[1].removeprefix("> ")
        except StopIteration:
            raise BadReadmeError(f"line {number}: the block ends within this command") from None
        command += "\n" + line
        if document and line.strip() == document["end"]:
            break
    return command
