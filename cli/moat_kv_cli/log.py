"""`moat kv log save|restore`: back-up of a whole tree while the server runs, and the way back."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import anyio
import asyncclick as click

import moat_kv
from moat_kv import codec, errors
from moat_kv.engine import file_errors
from moat_kv.path import Path
from moat_kv_cli import command, entries, logfile, move, output, values

if TYPE_CHECKING:
    from moat_kv import Client

#: How long to wait, after the whole tree has come, for a point at which nothing is under way.
SETTLE_S = 10.0


@click.group(
    cls=command.Group,
    example="moat kv log save backup.moat\nmoat kv --url unix:///new.sock log restore backup.moat",
)
def log() -> None:
    """Back up the whole tree, restore it, move it into a network and back."""


@log.command(example="moat kv log save backup.moat\nmoat kv log save - | ssh desk 'cat > n1.moat'")
@click.argument("file")
@command.pass_invocation
async def save(invocation: command.Invocation, /, file: str) -> None:
    """Save every entry to FILE (- is standard output); the server goes on meanwhile.

    Claims and locks are left out: they belong to sessions, which a file cannot bring back.
    """
    async with invocation.client() as client:
        with _written(file) as out:
            writer = logfile.Writer(out, await _header(client))
            revision = await _save(client, writer)
            writer.end(revision)
    records = output.counted(writer.records, "record")
    click.echo(f"{records} saved, up to revision {revision}", err=file == "-")


async def _header(client: Client) -> dict[str, Any]:
    server = client.server
    revision = (await client.state())["revision"]
    return {
        "epoch": server.epoch,
        "revision": revision,
        "node": server.node,
        "version": server.version,
        "at": time.time(),
    }


async def _save(client: Client, writer: logfile.Writer) -> int:
    """Write the tree and what changes meanwhile; the revision up to which all is written.

    Ends at a mark that covers every record, so that no batch is there by halves; under writes that
    never pause, at the first mark after the time to settle.
    """
    left_out = await entries.session_places(client)
    newest = 0
    settled_at = math.inf
    async with client.watch(Path(), fetch=True, marks=True) as changes:
        async for event in changes:
            if isinstance(event, moat_kv.Reset):
                raise errors.Disconnected(f"saving was interrupted: {event.reason}")
            if isinstance(event, moat_kv.WatchEvent):
                newest = max(newest, event.rev)
                if not entries.is_within(event.path, left_out):
                    value = codec.pack(event.value) if "value" in event else None
                    writer.add(logfile.Saved(event.path, value, event.rev, event.at))
            elif isinstance(event, moat_kv.Ready):
                settled_at = anyio.current_time() + SETTLE_S
            since = changes.since
            if settled_at == math.inf or since is None:
                continue
            if since.rev >= newest or anyio.current_time() > settled_at:
                return since.rev
    raise errors.Disconnected("saving was interrupted")


@contextmanager
def _written(name: str) -> Iterator[IO[bytes]]:
    """A file that is there whole and synced, or not at all."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    place = pathlib.Path(name).absolute()
    try:
        with _draft_of(place) as file:
            yield file
    except OSError as exc:
        if isinstance(exc, errors.MoatKvError):
            raise
        # The draft's own name would tell nobody anything.
        exc.filename = None
        reason = file_errors.reason_of(exc, place)
        raise command.Refused(f"cannot write {place}: {reason}", command.FAILED) from exc


@contextmanager
def _draft_of(place: pathlib.Path) -> Iterator[IO[bytes]]:
    handle, draft = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(draft).replace(place)
    except BaseException:
        pathlib.Path(draft).unlink()
        raise


@log.command(
    example="moat kv log restore backup.moat\nssh desk cat n1.moat | moat kv log restore -"
)
@click.argument("file")
@click.option("--force", is_flag=True, help="Over what is there; entries not in FILE stay.")
@click.option("--check", is_flag=True, help="Only look whether FILE is whole.")
@command.pass_invocation
async def restore(invocation: command.Invocation, /, file: str, force: bool, check: bool) -> None:
    """Set every entry of FILE (- is standard input), into an empty tree.

    FILE is checked before anything is written.
    """
    with _opened(file) as saved:
        file = "standard input" if file == "-" else file
        facts = _check(saved, file)
        if check:
            records = output.counted(facts["records"], "record")
            click.echo(
                f"{file} is whole: {records}, up to revision {facts['end']} "
                f"of epoch {facts['epoch']}"
            )
            return
        async with invocation.client() as client:
            if not force:
                await _require_empty(client)
            count = 0
            async for chunk in _chunks(saved, file):
                count += await entries.write_all(client, chunk)
    click.echo(f"{output.counted(count, 'record')} restored")


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    """A file that can be read twice; standard input is copied into one."""
    if name != "-":
        with pathlib.Path(name).open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        yield copy


def _check(saved: IO[bytes], name: str) -> dict[str, Any]:
    """The header's and the end's facts. Raises StorageDamaged."""
    facts: dict[str, Any] = {}
    for item in logfile.read(saved, name):
        if not isinstance(item, logfile.Saved):
            facts.update(item)
    return facts


async def _require_empty(client: Client) -> None:
    if await client.list(Path()) or "value" in await client.get(Path()):
        raise command.Refused(
            "the tree is not empty; --force restores over what is there", command.CONFLICT
        )


async def _chunks(saved: IO[bytes], name: str) -> AsyncIterator[list[tuple[Path, Any]]]:
    """The entries to set, in the order of the file."""
    chunk: list[tuple[Path, Any]] = []
    saved.seek(0)
    for item in logfile.read(saved, name):
        if isinstance(item, logfile.Saved):
            value = values.NOTHING if item.value is None else codec.unpack(item.value)
            chunk.append((item.path, value))
        if len(chunk) >= entries.BATCH_ENTRIES:
            yield chunk
            chunk = []
            await anyio.lowlevel.checkpoint()
    yield chunk


log.add_command(move.move)
