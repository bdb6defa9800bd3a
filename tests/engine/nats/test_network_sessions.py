"""Sessions and members over several servers on a real nats-server."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.engine import nats_remote, network
from moat_kv.server.times import Times
from moat_kv.testing import nats
from moat_kv.testing.server import RunningServer, running_server
from tests.line import connected
from tests.server.network import PATIENT, TIMES, until

pytestmark = pytest.mark.anyio

A, G = P("a"), P("g")

Serve = Callable[[str], AbstractAsyncContextManager[RunningServer]]


def server_maker(url: str, folder: pathlib.Path, times: Times = PATIENT) -> Serve:
    @asynccontextmanager
    async def serve(name: str) -> AsyncIterator[RunningServer]:
        remote = nats_remote.NatsRemote(url, name=name)
        engine = network.NetworkEngine(remote, folder / f"{name}.sqlite", origin=f"{name}:log")
        async with running_server(name, engine=engine, times=times, tcp=True) as running:
            yield running

    return serve


async def test_session_is_adopted_and_its_former_server_takes_nothing_more(
    tmp_path: pathlib.Path, url: str
) -> None:
    serve = server_maker(url, tmp_path)
    async with serve("n1") as one, serve("n2") as two:
        async with connected(one.url) as line, connected(two.url) as other:
            opened = (await line.ask("session_open", ttl_s=60, grace_s=60)).fields
            id, secret = opened["session"], opened["secret"]
            await line.ask("set", 1, path=A, session=id)
            await other.ask("session_resume", session=id, secret=secret)
            with pytest.raises(errors.SessionExpired):
                await line.ask("set", 2, path=A, session=id)
            await other.ask("set", 3, path=A, session=id)
            await other.ask("session_close", session=id)
            with anyio.fail_after(30):
                while (await line.ask("get", path=A)).value is not None:
                    await anyio.sleep(0.02)


async def test_members_are_seen_through_any_server(tmp_path: pathlib.Path, url: str) -> None:
    serve = server_maker(url, tmp_path)
    async with (
        serve("n1") as one,
        serve("n2") as two,
        open_client(one.url) as here,
        open_client(two.url) as there,
        here.session() as mine,
        there.session() as theirs,
    ):
        await here.join(G, "a", session=mine)
        await until(lambda: two.server.groups.describe() == {"g": ["a"]})
        with pytest.raises(errors.NameTaken):
            await there.join(G, "a", session=theirs)
        await there.join(G, "b", session=theirs)
        await until(lambda: one.server.groups.describe() == {"g": ["a", "b"]})


async def test_without_nats_servers_see_only_their_own_and_come_together_again(
    tmp_path: pathlib.Path,
) -> None:
    with nats.server() as node:
        times = dataclasses.replace(TIMES, lease_s=3.0, silent_s=5.0)
        serve = server_maker(f"nats://{node.address}/house", tmp_path, times)
        async with (
            serve("n1") as one,
            serve("n2") as two,
            open_client(one.url) as here,
            open_client(two.url) as there,
            here.session(ttl_s=60) as mine,
            there.session(ttl_s=60) as theirs,
        ):
            await here.join(G, "a", session=mine)
            await there.join(G, "b", session=theirs)
            await until(lambda: one.server.groups.describe() == {"g": ["a", "b"]})
            node.kill()
            await until(lambda: one.server.groups.describe().get("g", []) in ([], ["a"]))
            # Both leases run out: their sessions are over, and no one has ended another's.
            await until(lambda: not one.server.leases.held and not two.server.leases.held)
            async with here.session(ttl_s=60) as fresh:
                await here.join(G, "c", session=fresh)
                node.start()
                await until(lambda: two.server.groups.describe() == {"g": ["c"]})
                await until(lambda: one.server.leases.held)
                await here.set(A, 1, session=fresh)
                await until(lambda: two.server.store.tree.head(A) is not None)


async def test_server_with_the_name_of_a_live_one_is_refused(
    tmp_path: pathlib.Path, url: str
) -> None:
    serve = server_maker(url, tmp_path)
    (tmp_path / "other").mkdir()
    again = server_maker(url, tmp_path / "other")
    async with serve("n1"):
        with pytest.raises((errors.NameTaken, BaseExceptionGroup)) as caught:
            async with again("n1"):
                raise AssertionError("it serves")
        error: BaseException = caught.value
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, errors.NameTaken)
