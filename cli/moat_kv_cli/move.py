"""`moat kv log move`: a server's own tree into a network, and a network's tree out of it again.

Works on the files and on NATS itself, with no server in between: one that had the tree open would
go on writing to what has been moved away.
"""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import asyncclick as click

from moat_kv import codec, config, errors
from moat_kv_cli import command, engines, output

if TYPE_CHECKING:
    from collections.abc import Callable

    from moat_kv.engine import base, moving

#: Servers answer at once when they are asked who is there; who is not heard in this time is not,
#: or is cut off from the network.
LISTEN_S = 4.0


class _Place:
    """One end of the move."""

    def __init__(self, text: str, invocation: command.Invocation) -> None:
        self.text = text
        self.file: pathlib.Path | None = None
        self.access = invocation.config.server.nats
        if not self.is_network:
            folder = pathlib.Path(text).expanduser().absolute()
            is_name = text.isidentifier() or text.replace("-", "_").isidentifier()
            self.file = (config.default_data(text) if is_name else folder) / "tree.sqlite"

    @property
    def is_network(self) -> bool:
        return "://" in self.text

    def __str__(self) -> str:
        return self.text if self.file is None else str(self.file)

    def engine(self) -> base.Engine:
        """Raises BadConfig, UsageError."""
        if self.file is None:
            return engines.make_network_alone(self.text, access=self.access)
        from moat_kv.engine.sqlite import SqliteEngine

        return SqliteEngine(self.file)


@click.command(
    cls=command.Command,
    example="moat kv log move n1 nats://one:4222,two:4222/house\n"
    "moat kv log move nats://one:4222/house n1\n"
    "moat kv log move /var/lib/moat-kv nats://one:4222/house",
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@command.pass_invocation
async def move(invocation: command.Invocation, /, source: str, target: str) -> None:
    """Move a whole tree: from a server's own files into a network, or back.

    FROM and TO are a network, nats://host:port,.../NETWORK, or the name of a server of this
    machine, or its data folder (what has a / in it). Stop its servers first. TO has to be empty;
    after an interruption the same command goes on. FROM's file is renamed to tree.sqlite.moved; a
    network stays as it is.

    Left out are claims and other entries of sessions, and earlier versions. There is a new epoch.
    """
    from moat_kv.engine import moving

    here, there = _Place(source, invocation), _Place(target, invocation)
    if str(here) == str(there):
        raise command.fail("FROM and TO are the same")
    if here.file is not None and not here.file.exists():
        raise errors.NotFound("tree at", str(here))
    async with _opened(here) as (old, asked), _opened(there) as (new, engine):
        if not old.live():
            raise errors.NotFound("entry in", str(here))
        if await moving.has_others(old, asked, new):
            raise command.Refused(f"{there} is not empty; nothing was moved", command.CONFLICT)
        if here.is_network:
            await _require_nobody(old, asked, here)
            _require_nothing_waits(here, there)
        try:
            count = await moving.move(old, new, engine, tell=_progress())
        except errors.MoatKvError as exc:
            exc.facts.setdefault("hint", "a part has been moved; the same command goes on")
            raise
        left_out = old.left_out()
    kept = f"; {output.counted(left_out, 'entry', 'entries')} of sessions left out"
    moved = "" if here.file is None else f"; the old file is {_put_away(here.file)}"
    count_text = output.counted(count, "entry", "entries")
    click.echo(f"{count_text} moved to {there}{kept if left_out else ''}{moved}")


@asynccontextmanager
async def _opened(place: _Place) -> AsyncIterator[tuple[moving.Held, base.Engine]]:
    from moat_kv.engine import moving

    engine, held = place.engine(), moving.Held()
    async with engine.running(held):
        yield held, engine


async def _require_nobody(held: moving.Held, engine: base.Engine, place: _Place) -> None:
    """Raises Refused if a server of the network is heard."""
    from moat_kv.server import network_facts

    heard: set[str] = set()
    somebody = anyio.Event()

    def on_message(topic: object, data: bytes) -> None:
        if topic == network_facts.TOPIC:
            facts = codec.unpack(data)
            heard.add(str(facts.get("node")) if isinstance(facts, dict) else "?")
            somebody.set()

    held.on_message = on_message
    engine.send(network_facts.ASK_TOPIC, b"")
    with anyio.move_on_after(LISTEN_S):
        await somebody.wait()
    if heard:
        names = ", ".join(sorted(heard))
        raise command.Refused(f"{place} is served by {names}: stop it first", command.CONFLICT)


def _require_nothing_waits(here: _Place, there: _Place) -> None:
    """Raises Refused if the server at the target keeps writes that the network does not have."""
    from moat_kv.engine import copy_store, nats_settings, sqlite_connection

    if there.file is None:
        return
    network = nats_settings.parse(here.text, here.access).access.network
    file = there.file.with_name(f"copy.{network}.sqlite")
    if not file.exists():
        return
    store = copy_store.CopyStore(sqlite_connection.connect, file)
    try:
        store.open()
        waiting = len(store.pending())
    finally:
        store.close()
    if waiting:
        raise command.Refused(
            f"{file} keeps {output.counted(waiting, 'write')} that the network does not have: "
            "start that server once more, until `moat kv net list` shows an empty outbox",
            command.CONFLICT,
        )


def _put_away(file: pathlib.Path) -> pathlib.Path:
    """Rename what has been moved, so that no server takes it for the truth."""
    away = file.with_name(f"{file.name}.moved")
    number = 1
    while away.exists():
        number += 1
        away = file.with_name(f"{file.name}.moved-{number}")
    return file.rename(away)


def _progress() -> Callable[[int, int], None]:
    return engines.progress("moving")
