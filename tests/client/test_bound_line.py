"""A line that is bound to a claim: the server guards all that it writes."""

from __future__ import annotations

import anyio
import pytest

from moat_kv import Client, P, codec, errors, open_client
from moat_kv.client.results import Mark
from moat_kv.testing.server import running_server

pytestmark = pytest.mark.anyio

CLAIM = P("claims.x")


async def claim(desk: Client, token: str = "t") -> int:
    result = await desk.set(CLAIM, {"token": token})
    return result.rev


async def test_every_write_of_a_bound_line_is_guarded_though_it_does_not_say_so() -> None:
    async with running_server() as server, open_client(server.url) as desk:
        rev = await claim(desk)
        async with open_client(server.url) as bound:
            await bound.bind_line((CLAIM, rev), "t")
            await bound.set(P("a"), 1)
            await bound.batch([bound.op_set(P("b"), 1), bound.op_delete(P("a"))])
            await bound.patch(P("b"), "add", 1)
            assert (await desk.get(P("b"))).value == 2
            await claim(desk)
            for write in (
                lambda: bound.set(P("a"), 2),
                lambda: bound.delete(P("b")),
                lambda: bound.batch([bound.op_set(P("a"), 1)]),
                lambda: bound.patch(P("b"), "add", 1),
                lambda: bound.delete_tree(P("b")),
                lambda: bound.set(P("a"), 2, guard=(P("b"), 4)),
            ):
                with pytest.raises(errors.StaleFence):
                    await write()
            assert (await bound.get(P("b"))).value == 2
            assert "value" not in await desk.get(P("a"))


async def test_line_is_bound_only_by_who_knows_the_claim() -> None:
    async with running_server() as server, open_client(server.url) as desk:
        rev = await claim(desk)
        with pytest.raises(errors.BadArguments, match="token"):
            await desk.bind_line((CLAIM, rev), "other")
        await desk.set(P("free"), 1)


async def test_bound_line_cannot_be_bound_to_another_claim() -> None:
    async with running_server() as server, open_client(server.url) as desk:
        rev = await claim(desk)
        other = await desk.set(P("claims.y"), {"token": "u"})
        async with open_client(server.url) as bound:
            await bound.bind_line((CLAIM, rev), "t")
            with pytest.raises(errors.BadArguments, match="another claim"):
                await bound.bind_line((P("claims.y"), other.rev), "u")


async def test_further_lines_are_bound_too() -> None:
    async with running_server() as server, open_client(server.url) as desk:
        rev = await claim(desk)
        async with open_client(server.url, name="bound") as bound:
            await bound.bind_line((CLAIM, rev), "t")
            again = anyio.Event()
            bound.add_connection_listener(lambda is_up: again.set() if is_up else None)
            for connection in list(server.server.connections):
                if connection.client_name == "bound":
                    connection.break_off()
            with anyio.fail_after(30):
                await again.wait()
            await claim(desk)
            with pytest.raises(errors.StaleFence):
                await bound.set(P("a"), 1)


async def test_line_that_is_bound_too_late_can_read_and_not_write() -> None:
    async with running_server() as server, open_client(server.url) as desk:
        rev = await claim(desk)
        async with open_client(server.url, name="bound") as bound:
            await bound.bind_line((CLAIM, rev), "t")
            again = anyio.Event()
            bound.add_connection_listener(lambda is_up: again.set() if is_up else None)
            await claim(desk)
            for connection in list(server.server.connections):
                if connection.client_name == "bound":
                    connection.break_off()
            with anyio.fail_after(30):
                await again.wait()
            assert (await bound.get(CLAIM)).rev > rev
            with pytest.raises(errors.StaleFence):
                await bound.request("set", {"path": P("a")}, codec.pack(1))
            assert "value" not in await desk.get(P("a"))
        async with open_client(server.url) as late:
            with pytest.raises(errors.StaleFence):
                await late.bind_line((CLAIM, rev), "t")
            with pytest.raises(errors.StaleFence):
                await late.set(P("a"), 1)


async def test_server_that_does_not_know_of_what_was_seen_is_not_taken() -> None:
    async with running_server() as server, open_client(server.url) as desk:
        rev = await claim(desk)
        epoch = desk.server.epoch
        async with open_client(server.url, seen=Mark(rev=rev, epoch=epoch)) as client:
            assert (await client.get(CLAIM)).rev == rev
        with pytest.raises(errors.CannotConnect, match="has seen"):
            async with open_client(server.url, seen=Mark(rev=rev + 1, epoch=epoch)):
                raise AssertionError("it was taken")
        async with open_client(server.url, seen=Mark(rev=rev + 1, epoch="another")) as client:
            assert client.server.epoch == epoch
