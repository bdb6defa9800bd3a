"""What commands print: one value, rows, or a stream of rows, as `-o` says.

`-o table` is for people on a terminal, plain text is what they get when not on one; `json`, `yaml`
and `jsonl` carry any value (see `plain`, `yamltext`), and `value` is the bare value: a text or path
without quotes, bytes as they are. Tables, which have to fit a terminal, shorten long cells and show
the time alone for today; all else is printed in full. Tables and YAML are imported when wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeVar

import asyncclick as click

from moat_kv import visible
from moat_kv.path import Path
from moat_kv_cli import command, plain

_F = TypeVar("_F", bound=Callable[..., Any])

FORMATS = ("table", "json", "yaml", "jsonl", "value")
PLAIN = "plain"
TABLE = "table"

Row = Mapping[str, Any]


def option(function: _F) -> _F:
    """Give a command the option `-o`; it gets a `Printer` as `out`."""
    return click.option(
        "-o",
        "--output",
        "out",
        type=click.Choice(FORMATS),
        callback=_printer,
        help="How to print; on a terminal a table, else plain text.",
    )(function)


def _printer(ctx: click.Context, param: click.Parameter, value: str | None) -> Printer | None:
    if ctx.resilient_parsing:
        return None
    if value is not None:
        return Printer(value, asked=True)
    invocation = ctx.find_object(command.Invocation)
    return Printer(invocation.config.output if invocation is not None else None)


class Printer:
    """Prints in one format, of `FORMATS` or `PLAIN`; `asked`: the user has said so with `-o`."""

    def __init__(self, format: str | None = None, *, asked: bool = False) -> None:
        self.asked = asked
        self.format = format or (TABLE if sys.stdout.isatty() else PLAIN)

    @property
    def for_people(self) -> bool:
        return self.format in (TABLE, PLAIN)

    def value(self, value: Any) -> None:
        """Print one value."""
        if self.format == "value" and isinstance(value, bytes):
            sys.stdout.flush()
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
            return
        self._write(self._value_text(value))

    def _value_text(self, value: Any) -> str:
        if self.format == "json":
            return plain.to_json(value, indent=2)
        if self.format == "jsonl":
            return plain.to_json(value)
        if self.format == "yaml":
            return _yaml(value)
        if self.format == "value":
            return str(value) if isinstance(value, str | Path) else plain.to_json(value)
        if isinstance(value, str):
            return visible.made(value) if sys.stdout.isatty() else value
        if isinstance(value, dict | list) and value:
            return _yaml(value)
        return plain.inline(value)

    def facts(self, row: Row) -> None:
        """Print one row, such as what `status` knows: for people a line for each fact."""
        if self.format in ("value", "jsonl", "json", "yaml"):
            self.value(dict(row))
            return
        width = max((len(name) for name in row), default=0)
        for name in row:
            self._write(f"{name:<{width}}  {shown(row, name)}".rstrip())

    def rows(self, columns: Sequence[str], rows: Sequence[Row], *, bare: str | None = None) -> None:
        """Print rows in their order. `value` prints the column `bare` alone, or else the first.

        For people only `columns` are shown; JSON and YAML have all that a row holds.
        """
        if self.format == "json":
            self._write(plain.to_json([dict(row) for row in rows], indent=2))
        elif self.format == "yaml":
            self._write(_yaml([dict(row) for row in rows]))
        elif self.format == TABLE:
            _table(columns, rows)
        elif self.format == PLAIN:
            for line in aligned(columns, rows):
                self._write(line)
        else:
            for row in rows:
                self.row(columns, row, bare=bare)

    def row(self, columns: Sequence[str], row: Row, *, bare: str | None = None) -> None:
        """Print one row of a stream, at once; `bare` as in `rows`."""
        if self.format == "value":
            name = bare or columns[0]
            self._write(self._value_text(row[name]) if name in row else "")
        elif self.for_people:
            cells = [shown(row, name) for name in columns]
            self._write("  ".join(each for each in cells if each))
        elif self.format == "yaml":
            self._write("---\n" + _yaml(dict(row)))
        else:  # json as well: a stream has no end at which a list could be closed
            self._write(plain.to_json(dict(row)))
        sys.stdout.flush()

    def done(self, row: Row) -> None:
        """Print what a write returned, if somebody asked for it with `-o`."""
        if self.asked:
            self.facts(row)

    def note(self, text: str) -> None:
        """A line for people; the other formats leave it out."""
        if self.for_people:
            self._write(text)

    def line(self, text: str) -> None:
        """A line as it is."""
        self._write(text)

    def flush(self) -> None:
        """What was printed is to be seen now."""
        sys.stdout.flush()

    def _write(self, text: str) -> None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")


def counted(number: int, one: str, more: str | None = None) -> str:
    """A number with its noun: `1 entry`, `2 entries`."""
    return f"{number} {one if number == 1 else more or one + 's'}"


def cell(value: Any) -> str:
    """A value in a table: one line, nothing for None, names with commas between them."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return ", ".join(map(plain.inline, value))
    return "" if value is None else plain.inline(value)


#: Columns that hold seconds since 1970, and are shown as local time.
_TIMES = (
    "at",
    "target",
    "started",
    "stopped",
    "pinged",
    "computed",
    "due",
    "first",
    "last",
    "since",
)
#: Columns that hold anybody's values; JSON where they are no texts.
_VALUES = ("value", "result")
#: What of a cell a table shows; `-o jsonl` shows all.
_CELL_LIMIT = 240
#: Plain text aligns cells up to this length; longer ones stand out, whole.
_ALIGNED_LIMIT = 80


def shown(row: Row, name: str, *, today: date | None = None) -> str:
    """One cell of a row, for people; of times on `today` only the time."""
    value = row.get(name)
    if name in _TIMES and isinstance(value, int | float):
        return local_time(value, today)
    if name in _VALUES and (name in row or row.get("deleted")):
        text = "(deleted)" if name == "value" and row.get("deleted") else plain.inline(value)
        # Kept by a server that is cut off; the network may know better.
        return f"{text} (pending)" if row.get("pending") else text
    return cell(value)


def local_time(at: float, today: date | None = None) -> str:
    """Seconds since 1970 as local date and time, to the second; on `today` the time alone."""
    try:
        when = datetime.fromtimestamp(at)
        return f"{when:%H:%M:%S}" if when.date() == today else f"{when:%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return repr(at)


def aligned(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Plain text in columns, with a line of their names above."""
    texts = [[name.upper() for name in columns]]
    texts += [[shown(row, name) for name in columns] for row in rows]
    # One long text must not push the columns of all other lines out of sight.
    widths = [
        max(len(line[index]) for line in texts if len(line[index]) <= _ALIGNED_LIMIT)
        for index in range(len(columns))
    ]
    return [
        "  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        for line in texts
    ]


def _table(columns: Sequence[str], rows: Sequence[Row]) -> None:
    from rich import box, console, table, text

    grid = table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        grid.add_column(name, overflow="fold")
    today = date.today()
    for row in rows:
        cells = [_shortened(shown(row, name, today=today)) for name in columns]
        grid.add_row(*map(text.Text, cells))
    wide = None if sys.stdout.isatty() else 1000
    console.Console(width=wide, highlight=False).print(grid)


def _shortened(text: str) -> str:
    return text if len(text) <= _CELL_LIMIT else text[: _CELL_LIMIT - 1] + "…"


def _yaml(value: Any) -> str:
    from moat_kv_cli import yamltext

    return yamltext.to_yaml(value)
