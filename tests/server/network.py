"""Several servers on one log that a test cuts them off from, each with what it needs."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio

from moat_kv import codec
from moat_kv.engine import local_copy, network
from moat_kv.entry import Record
from moat_kv.path import Path
from moat_kv.server.server import Server
from moat_kv.server.times import Times
from moat_kv.testing.server import RunningServer, running_server
from tests.engine.fake_remote import FakeRemote, SharedLog

#: For what is to be over within a test, so that a machine that stops for a second may be too late.
TIMES = Times(
    lease_s=1.2,
    renew_s=0.2,
    ttl_s=2.0,
    grace_s=1.5,
    presence_s=0.1,
    silent_s=0.8,
    leave_s=0.4,
    sweep_s=0.05,
)
#: For all else: nothing ends by itself, and it is renewed and told as often.
PATIENT = dataclasses.replace(TIMES, lease_s=60.0, ttl_s=60.0, grace_s=60.0, silent_s=60.0)


class Site:
    """One server, and its link to the log."""

    def __init__(
        self, copy: local_copy.LocalCopy, remote: FakeRemote, running: RunningServer
    ) -> None:
        self.copy = copy
        self.remote = remote
        self.running = running

    @property
    def server(self) -> Server:
        return self.running.server

    @property
    def url(self) -> str:
        return self.running.url

    async def has_copy(self) -> None:
        """Until it has one; what is not on disk then will be when the server ends."""
        await until(lambda: bool(self.copy.state.epoch))

    def skip(self, by_s: float) -> None:
        """For its leases so much time passes at once: its own, and those it has seen."""
        leases = self.server.leases
        clock = leases._clock
        leases._clock = lambda: clock() + by_s
        leases.give_back(-by_s)

    def cut(self) -> None:
        self.remote.cut()

    def heal(self) -> None:
        self.remote.heal()


class Network:
    """The log, and where the copies are."""

    def __init__(self, folder: pathlib.Path, times: Times = TIMES) -> None:
        self.log = SharedLog()
        self.folder = folder
        self.times = times

    @asynccontextmanager
    async def server(
        self,
        name: str,
        *,
        times: Times | None = None,
        is_linked: bool = True,
        home: str = "",
        wrong_s: float = 0.0,
    ) -> AsyncIterator[Site]:
        """Serve until left. `times`: if not those of the network. `home`: where its files are, if
        not in a folder of its name. `wrong_s`: see `FakeRemote`.
        """
        remote = FakeRemote(self.log)
        remote.is_linked, remote.wrong_s = is_linked, wrong_s
        file = self.folder / (home or name) / "copy.sqlite"
        copy = local_copy.LocalCopy(file, delay_s=0.0)
        engine = network.NetworkEngine(
            remote, file, origin=f"{name}:log", patience_s=0.2, copy=copy
        )
        try:
            async with running_server(
                name, engine=engine, times=times or self.times, tcp=True
            ) as running:
                yield Site(copy, remote, running)
        finally:
            self.log.links.remove(remote)

    @asynccontextmanager
    async def servers(self, *names: str) -> AsyncIterator[list[Site]]:
        """Several of them, which see each other."""
        async with AsyncExitStack() as stack:
            sites = [await stack.enter_async_context(self.server(name)) for name in names]
            for site in sites:
                await until(lambda site=site: len(site.server.presence.peers) == len(names) - 1)
            yield sites

    def history(self, path: Path) -> list[Any]:
        """All values that a path has had; None: it was deleted."""
        return [_value(record) for record in self.log.records if record.path == path]


def _value(record: Record) -> Any:
    return None if record.value is None else codec.unpack(record.value)


async def until(condition: Any, limit_s: float = 30.0) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(limit_s):
        while not condition():
            await anyio.sleep(0.01)
