"""Clients that use a network as registers: strict reads, sets and compare-and-sets of few keys.

Used by `linearizable_network` and `freeze_network`. Eight clients spread over the servers, each of
which keeps its name on new lines; what was open on an old one stays open in the history. Now and
then they read what their server shows: taken as if it were the network's word (`as_strict`), that
is what the checker must find.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import anyio

from moat_kv import P, errors, open_client
from tests.faults import linearizability, network_box
from tests.faults.history import Operation, Recorder, Value
from tests.faults.linearizability import Verdict
from tests.faults.network_box import Box
from tests.faults.recording import LineGone, Recorded

CLIENTS = 8
KEYS = ("register.one", "register.two", "register.three", "register.four")
#: A client pauses so long between two requests on average, in seconds.
PAUSE_S = 0.02


@dataclass(kw_only=True)
class Registers:
    """What the clients do, and what they were answered."""

    box: Box
    chance: random.Random
    plain_writes: bool = False
    """A quarter of the sets are plain ones, which their servers may keep, and bring in later."""
    keys: Sequence[str] = KEYS
    values: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    recorder: Recorder = field(default_factory=Recorder)
    logs: dict[str, dict[int, Value | None]] = field(default_factory=dict)
    """Of each key what the log has at which revision, as far as it was collected."""

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Clients work for as long as the context lasts."""
        async with anyio.create_task_group() as tasks:
            for number in range(CLIENTS):
                tasks.start_soon(self._use, number)
            yield
            tasks.cancel_scope.cancel()

    async def _use(self, number: int) -> None:
        home = number % len(self.box.servers)
        urls = [*self.box.urls[home:], *self.box.urls[:home]]
        # Kept over lines: who asks the next server may know more than that.
        known: dict[str, int] = {}
        while True:
            try:
                async with open_client(urls, reconnect=False, request_timeout_s=20.0) as client:
                    strict = Recorded(client, self.recorder, f"c{number}")
                    plain = Recorded(client, self.recorder, f"c{number}", strict=False)
                    strict.known = plain.known = known
                    while True:
                        await self._one(strict, plain)
                        await anyio.sleep(PAUSE_S * 2 * self.chance.random())
            except (errors.CannotConnect, errors.Disconnected, LineGone):
                await anyio.sleep(0.1)

    async def _one(self, strict: Recorded, plain: Recorded) -> None:
        key = self.chance.choice(self.keys)
        kind = self.chance.random()
        if kind < 0.4:
            await (plain if kind < 0.15 else strict).read(key)
        elif kind < 0.8:
            await strict.write(key, next(self.values), expect=strict.known.get(key, 0))
        else:
            is_plain = self.plain_writes and kind < 0.85
            await (plain if is_plain else strict).write(key, next(self.values))

    def operations(self) -> list[Operation]:
        """The history; it is closed by this."""
        return self.recorder.close()

    async def collect(self) -> None:
        """Take what the log has, while a server is in touch: it keeps so many of each key only."""
        async with open_client(self.box.urls, wait=True) as client:
            for key in self.keys:
                with contextlib.suppress(errors.Detached):
                    for record in await client.history(P(key), limit=network_box.HISTORY):
                        self.logs.setdefault(key, {})[record.rev] = record.get("value")

    async def last_reads(self) -> None:
        """What each server has in the end."""
        for number, url in enumerate(self.box.urls):
            async with open_client(url, wait=True) as client:
                for key in self.keys:
                    await Recorded(client, self.recorder, f"c{number}").read(key)


def as_strict(operations: Sequence[Operation]) -> list[Operation]:
    """The same history, with all reads as if they had asked for the network's word."""
    return [dataclasses.replace(one, strict=True) for one in operations]


def judge(operations: Sequence[Operation]) -> list[Verdict]:
    """The checker's word on each key."""
    # A server refuses what its copy shows to be in vain, and names what the copy has, which may be
    # older than what is there: only that the expected revision was not there is the network's word.
    return linearizability.check(operations, exact_conflicts=False)


def counts(operations: Sequence[Operation], verdicts: Sequence[Verdict]) -> str:
    """One line."""
    outcomes = Counter(one.outcome for one in operations)
    kinds = Counter(one.kind for one in operations if one.outcome == "ok")
    answers = Counter(verdict.answer for verdict in verdicts)
    errors_ = Counter(one.error for one in operations if one.outcome == "failed")
    return (
        f"{CLIENTS} clients, {len(verdicts)} keys: {len(operations)} operations, {outcomes['ok']}"
        f" ok ({', '.join(f'{kinds[kind]} {kind}' for kind in sorted(kinds))}),"
        f" {outcomes['pending']} pending, {outcomes['unknown']} unknown, {outcomes['failed']}"
        f" failed ({', '.join(f'{errors_[name]} {name}' for name in sorted(errors_))});"
        f" keys: {answers['fine']} fine, {answers['wrong']} wrong, {answers['unknown']} given up"
    )
