"""Servers of a network in one process, over a shared log that is no NATS."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from moat_kv import codec, conflicts, errors
from moat_kv.engine import base, local_copy, network
from moat_kv.entry import Record, Write
from moat_kv.path import P, Path
from tests.client.waiting import until
from tests.engine.fake_remote import Canvas, Clock, FakeRemote, SharedLog

A, B = P("a"), P("b.c")


class Node:
    """One server: its engine, and what its clients would see."""

    def __init__(
        self, name: str, log: SharedLog, folder: pathlib.Path, tasks: anyio.abc.TaskGroup
    ) -> None:
        self.name = name
        self._tasks = tasks
        self.clock = Clock(log)
        self.remote = FakeRemote(log)
        self.canvas = Canvas()
        self.conflicts: list[conflicts.Conflict] = []
        self._file = folder / f"{name}.sqlite"
        self._tick = 0
        self._lives = 0
        self._leave = self._left = anyio.Event()

    async def start(self, *, linked: bool = True, patience_s: float = 0.05) -> None:
        self._lives += 1
        self.canvas = Canvas()
        self.remote.is_linked = linked
        self.engine = network.NetworkEngine(
            self.remote,
            self._file,
            origin=f"{self.name}:log{self._lives}",
            patience_s=patience_s,
            moment=self.clock,
            copy=local_copy.LocalCopy(self._file, delay_s=0.0),
        )
        self.engine.on_conflict = self.conflicts.append
        self._leave, self._left = anyio.Event(), anyio.Event()
        await self._tasks.start(self._run)

    async def _run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with self.engine.running(self.canvas):
            task_status.started()
            await self._leave.wait()
        self._left.set()

    async def stop(self) -> None:
        self._leave.set()
        await self._left.wait()

    async def restart(self, *, linked: bool = True) -> None:
        await self.stop()
        await self.start(linked=linked)

    def submit(self, path: Path, value: Any, **options: Any) -> list[base.Outcome]:
        """What becomes of it is in the list, some time."""
        self._tick += 1
        packed = None if value is None else codec.pack(value)
        write = Write(path, packed, origin=f"{self.name}:x", tick=self._tick, **options)
        outcomes: list[base.Outcome] = []
        self.engine.submit((write,), outcomes.append)
        return outcomes

    async def write(self, path: Path, value: Any, **options: Any) -> base.Outcome:
        outcomes = self.submit(path, value, **options)
        await until(lambda: outcomes)
        return outcomes[0]

    async def set(self, path: Path, value: Any, **options: Any) -> Record:
        outcome = await self.write(path, value, **options)
        assert not isinstance(outcome, errors.MoatKvError), outcome
        return outcome[0]

    async def settled(self) -> None:
        await until(lambda: self.engine.describe()["outbox"] == 0)


@asynccontextmanager
async def nodes(folder: pathlib.Path, *names: str) -> AsyncIterator[tuple[SharedLog, list[Node]]]:
    log = SharedLog()
    async with anyio.create_task_group() as tasks:
        made = [Node(name, log, folder, tasks) for name in names]
        for node in made:
            await node.start()
        yield log, made
        for node in made:
            await node.stop()


def in_conflict(log: SharedLog) -> list[conflicts.Conflict]:
    return [
        conflicts.unpack(record.value)
        for path, record in log.heads.items()
        if path[: len(conflicts.PLACE)] == conflicts.PLACE and record.value is not None
    ]


def is_pending(record: Record) -> bool:
    return record.rev < 0


def unpacked(conflict: conflicts.Conflict) -> Any:
    assert conflict.value is not None
    return codec.unpack(conflict.value)


def written(log: SharedLog) -> list[Any]:
    return [codec.unpack(record.value) for record in log.records if record.value is not None]


def values(log: SharedLog) -> dict[Path, Any]:
    return {
        path: codec.unpack(record.value)
        for path, record in log.heads.items()
        if record.value is not None and path[: len(conflicts.PLACE)] != conflicts.PLACE
    }
