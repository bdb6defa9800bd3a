"""What clients see of a server that is cut off from its network, and comes back."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import Client, NotGiven, P, codec, errors, open_client
from moat_kv.client import results
from moat_kv.engine import local_copy, network
from moat_kv.entry import Write
from moat_kv.path import Path
from moat_kv.testing.server import running_server
from tests.client import waiting
from tests.engine.fake_remote import Clock, FakeRemote, SharedLog

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b.c")


class Site:
    """One server behind a link that can be cut, with a client."""

    def __init__(self, log: SharedLog, remote: FakeRemote, client: Client) -> None:
        self.log = log
        self.remote = remote
        self.client = client

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

        with anyio.fail_after(10):
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
        yield Site(log, remote, client)


async def test_what_is_kept_is_pending_until_it_is_in_the_network(tmp_path: pathlib.Path) -> None:
    async with site(tmp_path) as here:
        client = here.client
        first = await client.set(A, 1)
        assert not first.pending
        here.remote.cut()
        result = await client.set(A, 2)
        assert (result.pending, result.rev) == (True, first.rev)
        gone = await client.delete(A)
        assert (gone.pending, gone.deleted) == (True, True)
        assert "value" not in await client.get(A)
        assert (await client.set(B, "new")).pending
        found = await client.get(B)
        assert (found.value, found.pending, found.rev) == ("new", True, 0)
        rows = [row async for row in client.get_tree(P(":"))]
        assert [(row.path, row.value, row.pending) for row in rows] == [(B, "new", True)]
        here.remote.heal()
        await here.settled()
        found = await client.get(B)
        assert (found.value, found.pending, found.rev > 0) == ("new", False, True)
        assert "value" not in await client.get(A)


async def test_what_needs_agreement_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    async with site(tmp_path) as here:
        client = here.client
        first = await client.set(A, 1)
        here.remote.cut()
        with anyio.fail_after(2):
            for refused in (
                lambda: client.set(A, 2, expect=first.rev),
                lambda: client.set(A, 2, strict=True),
                lambda: client.set(A, 2, ttl_s=5),
                lambda: client.patch(A, "add", 1),
                lambda: client.delete_tree(A),
                lambda: client.get(A, strict=True),
            ):
                with pytest.raises(errors.Detached):
                    await refused()
        assert (await client.get(A)).value == 1


async def test_watchers_and_mirrors_see_what_is_pending_and_what_became_of_it(
    tmp_path: pathlib.Path,
) -> None:
    async with site(tmp_path) as here:
        client = here.client
        await client.set(A, 1)
        async with client.mirror(P(":")) as root, client.watch(P(":")) as changes:
            here.remote.cut()
            await root[A].set_value(2)
            assert (root[A].value, root[A].pending) == (2, True)
            (event,) = await waiting.take(changes)
            assert isinstance(event, results.WatchEvent)
            assert (event.value, event.pending) == (2, True)
            here.log.now += 5
            here.elsewhere(A, "later")
            here.elsewhere(B, "too")
            here.remote.heal()
            await waiting.until(lambda: root[A].value == "later" and not root[A].pending)
            seen: dict[Path, Any] = {}
            while seen.get(A) != "later" or seen.get(B) != "too":
                (event,) = await waiting.take(changes)
                assert not event.pending
                seen[event.path] = event.value
            (conflict,) = root[P(":.moat.kv.conflict")].values()
            assert (conflict.value.path, conflict.value.value) == (A, 2)


async def test_a_client_that_moves_on_asks_what_became_of_what_was_pending(
    tmp_path: pathlib.Path,
) -> None:
    async with site(tmp_path) as here:
        await here.client.set(A, 1)
        async with here.client.mirror(P(":")) as root:
            here.remote.cut()
            await here.client.set(A, 2)
            await here.client.set(B, 3)
            await waiting.until(lambda: root.get(B) is not None and root[A].pending)
            feed = root._feed
            asked = feed.ask()
            assert sorted(asked["again"]) == [A, B]
            # What another server would be asked, this one is asked after the heal.
            here.remote.heal()
            await here.settled()
            await waiting.until(lambda: not root[A].pending and not root[B].pending)
            assert "again" not in feed.ask()


async def test_a_tree_that_is_taken_anew_is_shown_whole(tmp_path: pathlib.Path) -> None:
    async with site(tmp_path) as here:
        client = here.client
        for number in range(5):
            await client.set(P("n") / number, number)
        async with client.mirror(P("n")) as root:
            here.remote.cut()
            here.elsewhere("n:3", NotGiven)
            here.log.forget(P("n:3"))
            here.elsewhere("n:9", 9)
            assert len(root) == 5
            here.remote.heal()
            await waiting.until(lambda: 9 in root and 3 not in root)
            assert set(root) == {0, 1, 2, 4, 9}
            assert (await client.get(P("n:4"))).value == 4
