"""`data PATH dump | load | update`: a subtree as text, one line of JSON for each entry.

The first line of a dump says what it is; each line after it is `{"path": text, "value": ...}` with
the path below the dump's, and values as `plain` writes them, so that any value survives. `load`
reads the whole before it writes; `update` applies changes as they come, from such lines or from
those of `watch -o jsonl`, where a line without a value deletes.

Claims and locks are left out on both ways: they belong to sessions, see `entries.session_places`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import IO, Any, TypeAlias

import anyio
import anyio.to_thread
import asyncclick as click
from anyio.streams.memory import MemoryObjectReceiveStream

from moat_kv import errors
from moat_kv.path import P, Path
from moat_kv_cli import command, entries, output, plain, values, verbs

FORMAT = "moat-kv dump"
FORMAT_VERSION = 1
#: What a line may hold; only the first two are read.
_KEYS = {"path", "value", "rev", "at", "id", "deleted"}


@contextmanager
def _opened(name: str, mode: str) -> Iterator[IO[bytes]]:
    """A file, or standard input or output for `-`."""
    if name == "-":
        yield sys.stdout.buffer if "w" in mode else sys.stdin.buffer
        return
    with open(name, mode) as file:  # noqa: PTH123
        yield file


@click.command(
    cls=command.Command,
    example="moat kv data rooms dump rooms.jsonl\nmoat kv data : dump > all.jsonl",
)
@click.argument("file", default="-")
@command.pass_invocation
async def dump(invocation: command.Invocation, /, file: str) -> None:
    """Write an entry and all below it to FILE, or to standard output.

    Where there is nothing, FILE stays as it was, and the exit code is 3.

    Claims and locks are left out: they belong to sessions, which a file cannot bring back.
    """
    here = invocation.here
    async with invocation.client() as client:
        left_out = await entries.session_places(client)
        await entries.require_any(client, here)
        head = {"format": FORMAT, "version": FORMAT_VERSION, "path": str(here)}
        with _opened(file, "wb") as out:
            out.write(plain.to_json(head).encode() + b"\n")
            async for each in client.get_tree(here):
                if entries.is_within(here + each.path, left_out):
                    continue
                line = plain.to_json({"path": str(each.path), "value": each.value})
                out.write(line.encode() + b"\n")
            out.flush()


@click.command(
    cls=command.Command,
    example="moat kv data rooms load rooms.jsonl\nmoat kv data copy load < all.jsonl",
)
@click.argument("file", default="-")
@click.option("--replace", is_flag=True, help="Delete what is below PATH and not in the dump.")
@click.option("--force", is_flag=True, help="With --replace: even of the whole tree.")
@command.pass_invocation
async def load(invocation: command.Invocation, /, file: str, replace: bool, force: bool) -> None:
    """Set all entries of a dump, below PATH. Claims and locks are left out."""
    here = invocation.here
    if replace and not here and not force:
        raise command.fail(
            "that deletes all of the tree that is not in the dump, with code and jobs; "
            "--force does it"
        )
    found = {here + path: value for path, value in _read_dump(file).items()}
    async with invocation.client() as client:
        left_out = await entries.session_places(client)
        count = await entries.write_all(client, _without(found.items(), left_out))
        gone = 0
        if replace:
            old = [here + each.path async for each in client.get_tree(here)]
            deleted = ((path, values.NOTHING) for path in old if path not in found)
            gone = await entries.write_all(client, _without(deleted, left_out))
    what = output.counted(count, "entry", "entries")
    click.echo(f"{what} set" + (f", {gone} deleted" if replace else ""))


def _without(
    pairs: Iterable[tuple[Path, Any]], places: tuple[Path, ...]
) -> Iterator[tuple[Path, Any]]:
    """Those that are not at or below one of the places."""
    return ((path, value) for path, value in pairs if not entries.is_within(path, places))


@click.command(
    cls=command.Command,
    example="moat kv data rooms update changes.jsonl\n"
    "moat kv data a watch -o jsonl | moat kv --url tcp://other:27586 data : update",
)
@click.argument("file", default="-")
@click.option("--strip", type=verbs.PATH, metavar="PATH", help="Take this off every path first.")
@command.pass_invocation
async def update(invocation: command.Invocation, /, file: str, strip: Path | None) -> None:
    """Apply changes below PATH as they come: lines of a dump, or of `watch -o jsonl`.

    Those of claims and locks are left out.
    """
    here, strip = invocation.here, strip or Path()
    count = 0
    async with invocation.client() as client, _reading(file) as lines:
        left_out = await entries.session_places(client)
        while found := await _next(lines):
            changes = [(here + path[len(strip) :], value) for path, value in _changes(found, strip)]
            count += await entries.write_all(client, _without(changes, left_out))
    click.echo(f"{output.counted(count, 'change')} applied")


def _changes(lines: list[tuple[int, bytes]], strip: Path) -> Iterator[tuple[Path, Any]]:
    for number, line in lines:
        if _is_blank_or_head(number, line):
            continue
        path, value = parse_line(line, number)
        if not path.startswith(strip):
            raise errors.BadValue(f"line {number}: {path} is not below {strip}")
        yield path, value


# Reading ----------------------------------------------------------------------------------------


def _read_dump(name: str) -> dict[Path, Any]:
    """A dump's entries by their paths. Raises BadValue with the line's number."""
    found: dict[Path, Any] = {}
    with _opened(name, "rb") as file:
        _check_head(file.readline())
        for number, line in enumerate(file, 2):
            if not line.strip():
                continue
            path, value = parse_line(line, number)
            if value is values.NOTHING:
                raise errors.BadValue(f"line {number}: a value is missing")
            if path in found:
                raise errors.BadValue(f"line {number}: {path} comes twice")
            found[path] = value
    return found


def _check_head(line: bytes) -> None:
    head = _decoded(line, 1)
    if not _is_head(head):
        raise errors.BadValue("line 1: this is no dump; changes are applied with `update`")
    if head.get("version") != FORMAT_VERSION:
        raise errors.BadValue(f"line 1: version {head.get('version')!r} is not known here")


def _is_head(line: Any) -> bool:
    return isinstance(line, dict) and line.get("format") == FORMAT


def _decoded(line: bytes, number: int) -> Any:
    try:
        return plain.from_json(line.decode("utf-8"))
    except (errors.BadValue, UnicodeDecodeError) as exc:
        reason = exc.reason if isinstance(exc, errors.BadValue) else "not UTF-8"
        raise errors.BadValue(f"line {number}: {reason}") from exc


def parse_line(line: bytes, number: int) -> tuple[Path, Any]:
    """The path and the value (`values.NOTHING`: none) of one line.

    Raises BadValue that names the line.
    """
    row = _decoded(line, number)
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise errors.BadValue(f'line {number}: {{"path": text, "value": ...}} is needed')
    unknown = row.keys() - _KEYS
    if unknown:
        raise errors.BadValue(f"line {number}: {min(unknown)} is not known here")
    try:
        return P(row["path"]), row.get("value", values.NOTHING)
    except errors.BadPath as exc:
        raise errors.BadValue(f"line {number}: {exc}") from exc


Lines: TypeAlias = "MemoryObjectReceiveStream[tuple[int, bytes]]"


@asynccontextmanager
async def _reading(name: str) -> AsyncIterator[Lines]:
    """A file's lines with their numbers, as they come.

    A thread reads, so that lines which come slowly through a pipe are applied at once, and those
    of a long file together.
    """
    send, receive = anyio.create_memory_object_stream[tuple[int, bytes]](entries.BATCH_ENTRIES)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_pump, name, send)
        async with receive:
            yield receive
        tasks.cancel_scope.cancel()


async def _next(lines: Lines) -> list[tuple[int, bytes]]:
    """The lines that are there, at least one; none at the end."""
    try:
        found = [await lines.receive()]
    except anyio.EndOfStream:
        return []
    while len(found) < entries.BATCH_ENTRIES and lines.statistics().current_buffer_used:
        found.append(lines.receive_nowait())
    return found


def _is_blank_or_head(number: int, line: bytes) -> bool:
    return not line.strip() or (number == 1 and _is_head(_decoded(line, 1)))


async def _pump(name: str, send: Any) -> None:
    # Abandoned on cancel: a read from a terminal cannot be interrupted, and nothing depends on it.
    with _opened(name, "rb") as file:
        async with send:
            number = 0
            while line := await anyio.to_thread.run_sync(file.readline, abandon_on_cancel=True):
                number += 1
                await send.send((number, line))
