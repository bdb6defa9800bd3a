"""The date of one server jumps: `python -m tests.faults.clock_jumps --rounds 20`.

Three NATS nodes and three servers, and clients that write without pause at all of them. The wall
clock of one server jumps back by an hour, ten years ahead, and to the right time again, while its
monotonic clock runs on (libfaketime). In turn that happens while it is in touch, while it is cut
off from the others, or while it is cut off, killed and started again. Meanwhile it and another
server write the same entries, one after the other. Afterwards, when it is back:

- of each of these entries the newest value is there on all servers, the other among the conflicts;
- no session has ended, of a client of that server or of another one, unless that server was away
  for longer than its lease holds, or than the grace of a session whose server has died;
- an entry that has an hour to live is there, one that had a second is not;
- every write that was answered is there, or replaced, or among the conflicts.

Exit code 0 if everything was as it has to be, 1 if not, 2 if libfaketime is missing.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field

import anyio

from moat_kv import Client, P, errors, open_client
from tests.faults import live_sessions, network_box, network_writers, wrong_clock
from tests.faults.live_sessions import LiveSessions
from tests.faults.network_box import Box
from tests.faults.wrong_clock import WrongClock

#: Whose clock it is.
SERVER = "s1"
HOUR_S, TEN_YEARS_S = 3_600.0, 10 * 365.25 * 86_400
JUMPS = {"an hour back": -HOUR_S, "ten years ahead": TEN_YEARS_S, "right again": 0.0}
WHEN = ("in touch", "cut off", "over a restart")
ENTRIES = 4
#: So far apart are writes whose order matters, in seconds.
APART_S = 0.3
NOTICE_S, SETTLE_S = 20.0, 30.0
#: Clients write on for so long after a heal, in seconds.
WRITE_ON_S = 1.0
#: An entry whose time is over is gone after so many seconds more.
GONE_S = 15.0
PLACES = (*network_writers.PLACES, "clock")


@dataclass(kw_only=True)
class Counts:
    """What was seen in all rounds."""

    jumps: Counter[str] = field(default_factory=Counter)
    when: Counter[str] = field(default_factory=Counter)
    contested: int = 0
    sessions: int = 0
    """Times that a session lived on over a jump."""
    given_up: int = 0
    """Sessions of that server that were over because it was away for too long."""
    timed: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        jumps = ", ".join(f"{self.jumps[name]} {name}" for name in JUMPS)
        when = ", ".join(f"{self.when[name]} {name}" for name in WHEN)
        return (
            f"{self.jumps.total()} jumps of a server's clock ({jumps}; {when}): {self.contested}"
            f" contested entries, {self.timed} that end by themselves, {self.sessions} times a"
            f" session lived on, {self.given_up} given up as their server was away for too long;"
            f" {len(self.wrong)} wrong"
        )


class Round:
    """One jump, from the first entry to the look afterwards."""

    def __init__(
        self, box: Box, live: LiveSessions, clock: WrongClock, number: int, counts: Counts
    ) -> None:
        self._box, self._live, self._clock, self._counts = box, live, clock, counts
        self._chance = random.Random(number)
        self._jump = list(JUMPS)[number % len(JUMPS)]
        self._when = WHEN[number // len(JUMPS) % len(WHEN)]
        self._label = f"r{number}"
        self._other = self._chance.choice([name for name in box.servers if name != SERVER])
        self._written: dict[str, list[str]] = {}
        # Since when its server is away, and for how long its sessions bear that.
        self._timed_at = self._away_since = 0.0
        self._bears_s = live_sessions.HOLDS_S

    async def disturb(self) -> None:
        """Let the date jump. Raises what a broken box raises; what is wrong is in the counts."""
        box, cluster = self._box, self._box.cluster
        self._counts.jumps[self._jump] += 1
        self._counts.when[self._when] += 1
        if self._when == "in touch":
            self._clock.jump(JUMPS[self._jump])
        async with open_client(box.url(SERVER)) as client:
            for seconds in (1, 3600):
                await self._set_timed(client, seconds)
        self._timed_at = self._away_since = time.monotonic()
        others = [name for name in (*box.servers, *box.nodes) if name != SERVER]
        await box.do(cluster.split, [SERVER], others)
        try:
            await network_box.until_attached(box, {SERVER: False}, NOTICE_S)
            await self._write_all()
        finally:
            with anyio.CancelScope(shield=True):
                await box.do(cluster.heal, reset=self._chance.random() < 0.5)

    async def check(self) -> None:
        """Look at what has become of it. Nobody writes meanwhile."""
        settled_s = await network_box.settle(self._box, SETTLE_S)
        if settled_s >= SETTLE_S:
            self._wrong(f"not in order after {SETTLE_S:g} s")
        await self._check()
        await self._check_sessions(time.monotonic() - self._away_since)
        await self._check_timed(self._timed_at)

    def _wrong(self, text: str) -> None:
        line = f"{self._label} ({self._jump}, {self._when}): {text}"
        print(line, flush=True)
        self._counts.wrong.append(line)

    async def _set_timed(self, client: Client, seconds: int) -> None:
        """Again if it is refused: on a busy machine a server may be cut off for a moment."""
        with anyio.fail_after(SETTLE_S):
            while True:
                try:
                    await client.set(P(f"timed.{self._label}.{seconds}"), seconds, ttl_s=seconds)
                    return
                except (errors.Detached, errors.Unknown):
                    await anyio.sleep(0.1)

    async def _write_all(self) -> None:
        """Each entry by both servers, in any order; the clock jumps amidst the second half."""
        box = self._box
        for number in range(ENTRIES):
            key = f"clock.{self._label}.k{number}"
            self._written[key] = []
            for nth, server in enumerate(self._chance.sample([SERVER, self._other], 2)):
                if (number, nth) == (ENTRIES // 2, 1) and self._when != "in touch":
                    self._clock.jump(JUMPS[self._jump])
                    if self._when == "over a restart":
                        self._away_since = time.monotonic()
                        self._bears_s = live_sessions.GRACE_S
                        await box.restart(SERVER, 0.0)
                await self._write(server, key)
                await anyio.sleep(APART_S)

    async def _write(self, server: str, key: str) -> None:
        box, value = self._box, f"{key}.{server}"
        number = box.recorder.begin(f"{self._label}@{server}", key, "write", value=value)
        async with open_client(box.url(server), wait=True) as client:
            result = await client.set(P(key), value)
        box.recorder.end(number, "pending" if result.pending else "ok", value=value)
        self._written[key].append(value)
        if server == SERVER:
            if not result.pending:
                self._wrong(f"{key} was answered as stored, though cut off")
            elif abs(result.at - time.time() - self._clock.ahead_s) > HOUR_S / 60:
                self._wrong(f"{server} has the date {result.at}: its clock did not jump")

    # Afterwards ---------------------------------------------------------------------------------

    async def _check(self) -> None:
        async with network_box.clients_of(self._box) as clients:
            lost = set(await network_box.conflicting_values(clients[0]))
            for key, written in self._written.items():
                self._counts.contested += 1
                for server, client in zip(self._box.servers, clients, strict=True):
                    there = (await client.get(P(key))).get("value")
                    if there != written[-1]:
                        self._wrong(f"{key} is {there} at {server}, written as {written}")
                if not lost.issuperset(written[:-1]):
                    self._wrong(f"{key}: {written[:-1]} has lost, and is no conflict")

    async def _check_sessions(self, away_s: float) -> None:
        ended = await self._live.ended()
        self._counts.sessions += len(self._box.servers) - len(ended)
        for server in ended:
            if server == SERVER and away_s >= self._bears_s:
                self._counts.given_up += 1
            else:
                self._wrong(f"the session at {server} has ended, after {away_s:.1f} s")

    async def _check_timed(self, since: float) -> None:
        """What had a second is gone, what had an hour is there; also that of earlier rounds."""
        async with network_box.clients_of(self._box) as clients:
            self._counts.timed += 2
            # It may have come into the network only with the heal, and is left to its server first.
            with anyio.move_on_after(max(GONE_S, since + GONE_S - time.monotonic())):
                while await self._find(clients[0], 1):
                    await anyio.sleep(0.1)
            for server, client in zip(self._box.servers, clients, strict=True):
                if await self._find(client, 1):
                    self._wrong(f"{server} shows an entry that had a second")
                if not await self._find(client, 3600):
                    self._wrong(f"{server} does not show an entry that has an hour")

    async def _find(self, client: Client, seconds: int) -> bool:
        try:
            return "value" in await client.get(P(f"timed.{self._label}.{seconds}"), strict=True)
        except errors.Detached:
            return seconds == 1  # not known: look again


async def play(
    box: Box, clock: WrongClock, rounds: int, seed: int, pause_s: float, first: int = 0
) -> tuple[Counts, network_box.Verdict]:
    """So many jumps, in turn, beginning with number `first`."""
    counts = Counts()
    async with live_sessions.kept(box) as live:
        began = time.monotonic()
        for number in range(first, first + rounds):
            async with network_writers.writing(box, seed + 1000 * number, pause_s=pause_s):
                one = Round(box, live, clock, number, counts)
                await one.disturb()
                await anyio.sleep(WRITE_ON_S)
            await one.check()
            text = network_writers.counts(box, time.monotonic() - began)
            print(f"{number + 1} jumps; {text}; {len(counts.wrong)} wrong", flush=True)
        if await network_box.settle(box, SETTLE_S) >= SETTLE_S:
            counts.wrong.append("not in order in the end")
        counts.wrong += live.ended_elsewhere()
        async with open_client(box.url(SERVER)) as client:
            for number in range(first, first + rounds):
                if "value" not in await client.get(P(f"timed.r{number}.3600")):
                    counts.wrong.append(f"an entry of round {number} that has an hour is gone")
        verdict = await network_box.look(box, PLACES)
    return counts, verdict


async def run(folder: pathlib.Path, rounds: int, seed: int) -> int:
    """The exit code."""
    try:
        clock = WrongClock(folder / "clock")
    except wrong_clock.NotInstalled as exc:
        print(exc, file=sys.stderr)
        return 2
    async with network_box.box(folder, environment={SERVER: clock.environment}) as box:
        counts, verdict = await play(box, clock, rounds, seed, network_writers.PAUSE_S)
    print(counts)
    print(verdict)
    for line in [*counts.wrong[:20], *verdict.details()]:
        print(line)
    return 0 if verdict.is_fine and not counts.wrong else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=18, help="so many jumps")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
