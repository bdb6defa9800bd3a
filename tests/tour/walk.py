"""Do the steps of a tour in their terminals and compare what is printed.

`__main__` hands steps in and prints the problems that come out, each a line of text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tour import blocks
from tests.tour.blocks import READER, Step
from tests.tour.terminal import Terminal, pump

STOP_S = 10.0  # a program that takes longer to stop is reported
PRESS_AGAIN_S = 3.0  # a shell may miss a ^C while it starts a program; a reader presses again
READY_S = 30.0  # a shell that takes longer to start never will be ready
SWITCH_S = 1.5  # no reader is faster from one terminal to the next
SETTLE_S = 0.5  # what follows closely on an announced line is on its way


@dataclass(kw_only=True)
class Place:
    """A terminal, what was typed there last, and what the README leaves open there."""

    terminal: Terminal
    last: Step | None = None
    told: bool = True  # how `last` ended was looked at, or need not be
    anything_goes: bool = False  # the README's last word here was a lone `...`


class Walk:
    """The terminals of one tour. Steps come one after the other, `close` comes in any case."""

    def __init__(self, *, env: dict[str, str], folder: Path, limit_s: float, stop_s: float) -> None:
        self._env, self._folder, self._limit_s, self._stop_s = env, folder, limit_s, stop_s
        self._places: dict[int, Place] = {}

    def take(self, step: Step) -> list[str]:
        """Do one step; what is wrong with it."""
        place = self._place(step.terminal)
        if step.command == "^C":
            problems = self._stop(place)
        elif step.command:
            problems = self._start(place, step)
        else:
            problems = []
        if problems:
            return problems
        compare = self._read_to_the_end if step.terminal == READER else self._read_on
        return compare(place, step) + self._wrong_ends()

    def unannounced(self) -> list[str]:
        """What other terminals have printed and the README does not say."""
        self._pump(lambda: False, SETTLE_S)
        return [
            f"terminal {number} also printed: {line}"
            for number, place in self._places.items()
            if number != READER and not place.anything_goes
            for line in blocks.without_outer_blanks(place.terminal.lines())
        ]

    def close(self) -> list[str]:
        """Stop everything, the newest terminal first; what did not stop as it should."""
        problems = []
        for number, place in reversed(self._places.items()):
            if not place.terminal.is_idle():
                problems += self._stop(place)
            if not place.terminal.close(limit_s=self._stop_s):
                problems.append(f"terminal {number} had to be killed")
        self._places.clear()
        return problems

    def _place(self, number: int) -> Place:
        place = self._places.get(number)
        if place and not place.terminal.is_open():
            place.terminal.close(limit_s=self._stop_s)
            place = None
        if place is None:
            place = Place(terminal=Terminal(env=self._env, folder=self._folder))
            self._places[number] = place
            if not self._pump(place.terminal.is_idle, READY_S):
                raise TimeoutError(f"bash was not ready within {READY_S:g} s")
        return place

    def _pump(self, done: Callable[[], bool], limit_s: float) -> bool:
        return pump([place.terminal for place in self._places.values()], done, limit_s)

    def _start(self, place: Place, step: Step) -> list[str]:
        if not self._pump(place.terminal.is_idle, self._limit_s):
            return [f"the terminal is taken: `{place.last}` still runs there"]
        # The last command there may have ended only now.
        problems = self._wrong_ends()
        place.last, place.told = step, False
        place.terminal.type(step.command)
        return problems

    def _stop(self, place: Place) -> list[str]:
        if place.terminal.is_idle():
            return ["nothing runs there that could be stopped"]
        place.told = True  # any exit code will do
        terminal = place.terminal
        self._pump(lambda: terminal.has_foreground() or terminal.is_idle(), SWITCH_S)
        left_s = self._stop_s
        while left_s > 0:
            terminal.interrupt()
            if self._pump(terminal.is_idle, min(left_s, PRESS_AGAIN_S)):
                return []
            left_s -= PRESS_AGAIN_S
        return [f"`{place.last}` did not stop within {self._stop_s:g} s of ^C"]

    def _read_to_the_end(self, place: Place, step: Step) -> list[str]:
        problems = []
        if not self._pump(place.terminal.is_idle, self._limit_s):
            problems = [f"still ran after {self._limit_s:g} s", *self._stop(place)]
        lines = place.terminal.lines()
        place.terminal.forget(len(lines))
        printed = blocks.without_outer_blanks(lines)
        expected = blocks.without_outer_blanks(step.expected)
        if not re.fullmatch(blocks.pattern(expected), _as_text(printed)):
            problems += _difference(expected, printed)
        return problems

    def _read_on(self, place: Place, step: Step) -> list[str]:
        """Wait for the expected lines, or until it is sure that they do not come."""
        terminal = place.terminal
        expected = blocks.without_outer_blanks(step.expected)
        if all(map(blocks.is_any, expected)):  # nothing that could be waited for
            self._pump(terminal.is_idle, SWITCH_S if step.command else 0)
            place.anything_goes = bool(expected) or (place.anything_goes and not step.command)
            return []
        wanted = ["...", *expected] if place.anything_goes else expected
        search = re.compile(r"\n*" + blocks.pattern(wanted))
        is_elastic = any(map(blocks.is_any, wanted))

        def is_settled() -> bool:
            lines = terminal.lines()
            is_enough = len(blocks.without_outer_blanks(lines)) >= len(wanted) and not is_elastic
            return terminal.is_idle() or is_enough or bool(search.match(_as_text(lines)))

        self._pump(is_settled, self._limit_s)
        lines = terminal.lines()
        found = search.match(_as_text(lines))
        place.anything_goes = blocks.is_any(expected[-1])
        terminal.forget(found[0].count("\n") if found else len(lines))
        return [] if found else _difference(expected, lines)

    def _wrong_ends(self) -> list[str]:
        """Commands that have ended by now with a code that the README does not announce."""
        problems = []
        for number, place in self._places.items():
            status = place.terminal.status
            if place.told or place.last is None or status is None:
                continue
            place.told = True
            if status != place.last.exit_code:
                problems.append(f"`{place.last}` ended with {status}, not {place.last.exit_code}")
                problems += [f"terminal {number} shows: {x}" for x in place.terminal.lines()[-20:]]
        return problems


def _as_text(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _difference(expected: Sequence[str], printed: Sequence[str]) -> list[str]:
    names = ("the README", "printed")
    return list(difflib.unified_diff(expected, printed, *names, lineterm="", n=100))
