"""Clients that write all kinds of things and note in a journal what became of each.

Used by the fault commands. A writer ends when the line is gone; with `persist` it goes on after
what the server refused, as long as `stopped` is not set.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from moat_kv import Client, errors
from moat_kv.path import Path
from tests.faults.journal import Journal, Operation, Shown

PLACE = Path("fault")
#: How many paths each kind of writer goes over.
SINGLE_PATHS = 200
HOT_PATHS = 4
BATCH_PATHS = 8

#: What says that nothing has happened, and that the line is of no use any more.
_LINE_GONE = (errors.Disconnected, errors.Unknown)


class Writers:
    """All writers of some clients. `padding`: bytes that each value is made longer by."""

    def __init__(
        self,
        journal: Journal,
        chance: random.Random,
        *,
        padding: int = 0,
        persist: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        self.journal = journal
        self.stopped = False
        #: The last error that was answered.
        self.refusal: errors.MoatKvError | None = None
        self._chance = chance
        self._padding = b"x" * padding
        self._persist = persist
        self._pause_s = pause_s

    async def run(self, clients: Sequence[Client]) -> None:
        """Write through each client, until all have ended."""
        async with anyio.create_task_group() as tasks:
            for index, client in enumerate(clients):
                for kind in (self._set, self._set, self._delete, self._batch, self._compare):
                    tasks.start_soon(self._repeat, client, index, kind)

    async def _repeat(
        self, client: Client, index: int, kind: Callable[[Client, int], Awaitable[bool]]
    ) -> None:
        while not self.stopped and await kind(client, index):
            if self._pause_s:
                await anyio.sleep(self._pause_s)

    async def _set(self, client: Client, index: int) -> bool:
        path = PLACE + Path("one", index, self._chance.randrange(SINGLE_PATHS))
        operation = self.journal.asked(path)
        return await self._note(operation, client.set(path, self._value(operation)))

    async def _delete(self, client: Client, index: int) -> bool:
        path = PLACE + Path("gone", index, self._chance.randrange(SINGLE_PATHS))
        if self._chance.random() < 0.6:
            operation = self.journal.asked(path)
            return await self._note(operation, client.set(path, self._value(operation)))
        operation = self.journal.asked(path, deletes=True)
        return await self._note(operation, client.delete(path))

    async def _batch(self, client: Client, index: int) -> bool:
        paths = [PLACE + Path("batch", index, n) for n in range(BATCH_PATHS)]
        operation = self.journal.asked(*paths)
        value = self._value(operation)
        return await self._note(
            operation, client.batch([client.op_set(path, value) for path in paths])
        )

    async def _compare(self, client: Client, index: int) -> bool:
        """All clients over the same few paths: whoever is first wins."""
        path = PLACE + Path("hot", self._chance.randrange(HOT_PATHS))
        try:
            there = await client.get(path)
        except errors.MoatKvError:
            return False
        operation = self.journal.asked(path, expect=there.rev)
        request = client.set(path, self._value(operation), expect=there.rev)
        return await self._note(operation, request, may_lose=True)

    def _value(self, operation: Operation) -> Any:
        return [operation.number, self._padding] if self._padding else operation.number

    async def _note(
        self, operation: Operation, request: Awaitable[Any], *, may_lose: bool = False
    ) -> bool:
        """Wait for the answer and note it; whether to go on."""
        try:
            answer = await request
        except _LINE_GONE:
            return False
        except errors.MoatKvError as exc:
            self.journal.failed(operation)
            if may_lose and isinstance(exc, errors.Conflict):
                return True
            self.refusal = exc
            return self._persist
        results = answer if isinstance(answer, list) else [answer]
        self.journal.acknowledged(operation, [result.rev for result in results])
        return True


async def shown(client: Client) -> dict[Path, Shown]:
    """What is there now below the place that writers write to."""
    found: dict[Path, Shown] = {}
    async for row in client.get_tree(PLACE):
        value = row.value
        found[PLACE + row.path] = row.rev, value[0] if isinstance(value, list) else value
    return found
