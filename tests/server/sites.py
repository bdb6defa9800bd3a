"""A server behind a link that can be cut, with a client: for tests of who is cut off."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from moat_kv import Client, NotGiven, P, codec, open_client
from moat_kv.engine import local_copy, network
from moat_kv.entry import Write
from moat_kv.testing.server import RunningServer, running_server
from tests.engine.fake_remote import Clock, FakeRemote, SharedLog


class Site:
    """One server behind a link that can be cut, with a client."""

    def __init__(
        self, log: SharedLog, remote: FakeRemote, client: Client, running: RunningServer
    ) -> None:
        self.log = log
        self.remote = remote
        self.client = client
        self.url = running.url
        self.server = running.server

    def elsewhere(self, path: object, value: object) -> None:
        """Another server writes."""
        packed = None if value is NotGiven else codec.pack(value)
        self.log.commit(
            (Write(P(str(path)), packed, origin="other:x", tick=len(self.log.records)),)
        )

    async def settled(self) -> None:
        async def is_empty() -> bool:
            state = await self.client.state()
            return bool(state["engine"]["outbox"] == 0)

        with anyio.fail_after(30):
            while not await is_empty():
                await anyio.sleep(0.01)


@asynccontextmanager
async def site(folder: pathlib.Path) -> AsyncIterator[Site]:
    log = SharedLog()
    remote = FakeRemote(log)
    remote.is_linked = True
    file = folder / "copy.sqlite"
    engine = network.NetworkEngine(
        remote,
        file,
        origin="n1:log",
        patience_s=0.05,
        moment=Clock(log),
        copy=local_copy.LocalCopy(file, delay_s=0.0),
    )
    async with running_server(engine=engine) as server, open_client(server.url) as client:
        yield Site(log, remote, client, server)
