"""What users call, against a real server."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import Chain, Mark, NotGiven, P, Path, errors
from moat_kv.client import connection as connection_module
from tests.client.waiting import both, take, until

pytestmark = pytest.mark.anyio


async def test_an_entry_that_is_not_there_has_no_value_and_revision_0() -> None:
    async with both() as (_, client):
        result = await client.get(P("no.such"))
        assert "value" not in result
        assert dict(result) == {"rev": 0, "chain": None}
        assert result.get("value", "none") == "none"
        with pytest.raises(AttributeError):
            _ = result.value


async def test_a_result_is_a_mapping_and_has_attributes() -> None:
    async with both() as (_, client):
        written = await client.set(P("a.b"), {"temp": 21.5, "none": None})
        result = await client.get(P("a.b"))
        assert result.value.temp == result["value"]["temp"] == 21.5
        assert result.rev == written.rev == 1
        assert (result.at, result.id, result.chain) == (written.at, written.id, written.chain)
        assert list(result) == ["value", "rev", "at", "id", "chain"]
        assert "value" not in written
        with pytest.raises(KeyError):
            _ = result["none"]
        none = await client.set(P("n"), None)
        assert (await client.get(P("n")))["value"] is None
        assert none.rev == 2


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, "täxt", b"\0bytes", [1, [2]], {"a": {1: None}}, 2**70, P("a:1.b")],
    ids=lambda value: type(value).__name__,
)
async def test_a_value_comes_back_as_it_was(value: Any) -> None:
    async with both() as (_, client):
        await client.set(P("v"), value)
        assert (await client.get(P("v"))).value == value


async def test_a_path_must_be_a_path() -> None:
    async with both() as (_, client):
        text: Any = "a.b"
        for call in (client.get, client.delete, client.list, client.history, client.delete_tree):
            with pytest.raises(TypeError, match=r"write P\('a.b'\)"):
                await call(text)
        for make in (client.watch, client.get_tree, client.mirror, client.monitor, client.op_set):
            with pytest.raises(TypeError):
                make(text, *([1] if make == client.op_set else []))
        with pytest.raises(TypeError):
            await client.set(text, 1)


async def test_a_chain_lets_only_one_of_two_writers_through() -> None:
    async with both() as (_, client):
        path = P("a")
        first = await client.set(path, 1, chain=None)
        with pytest.raises(errors.Conflict):
            await client.set(path, 2, chain=None)
        second = await client.set(path, 2, chain=first.chain)
        with pytest.raises(errors.Conflict) as caught:
            await client.set(path, 3, chain=first.chain)
        assert caught.value.have == second.rev
        deleted = await client.delete(path, chain=(await client.get(path)).chain)
        assert deleted.chain is None
        assert deleted.deleted
        assert not (await client.delete(path)).deleted
        assert "deleted" not in await client.get(path)
        again = await client.set(path, 4, chain=deleted.chain)
        assert again.chain == (await client.get(path)).chain
        with pytest.raises(errors.Conflict, match="another epoch"):
            await client.set(path, 5, chain=Chain("other", again.rev))
        with pytest.raises(ValueError, match="one of them"):
            await client.set(path, 5, chain=None, expect=0)
        with pytest.raises(TypeError):
            await client.set(path, 5, chain=again.rev)  # type: ignore[arg-type]


async def test_of_two_creators_who_both_found_nothing_one_wins() -> None:
    async with both() as (_, client):
        for path in (P("never"), P("gone")):
            await client.set(P("gone"), 0)
            await client.delete(P("gone"))
            one, other = await client.get(path), await client.get(path)
            await client.set(path, "one", chain=one.chain)
            with pytest.raises(errors.Conflict):
                await client.set(path, "other", chain=other.chain)
            with pytest.raises(errors.Conflict):
                await client.delete(path, chain=other.chain)
            with pytest.raises(errors.Conflict):
                await client.batch([client.op_set(path, "other", chain=other.chain)])
            assert (await client.get(path)).value == "one"
            await client.set(path, "whoever is last")


async def test_write_options_reach_the_engine() -> None:
    async with both() as (_, client):
        one = await client.set(P("a"), 1)
        assert (await client.set(P("a"), 1, idem=True)).rev == one.rev
        with pytest.raises(errors.Conflict):
            await client.set(P("a"), 2, expect=7)
        with pytest.raises(errors.GuardFailed):
            await client.set(P("b"), 1, guard=(P("a"), one.rev + 5))
        with pytest.raises(errors.StaleFence):
            await client.delete(P("a"), fence=(P("a"), one.rev + 5))
        await client.set(P("b"), 1, guard=(P("a"), one.rev), strict=True)
        await client.set(P("brief"), 1, ttl_s=0.05)
        with anyio.fail_after(30):
            while "value" in await client.get(P("brief")):
                await anyio.sleep(0.01)


async def test_a_bound_view_sends_its_fence_with_each_write() -> None:
    async with both() as (_, client):
        claim = await client.set(P("claim"), "me")
        job = client.bound(fence=(P("claim"), claim.rev))
        await job.set(P("x"), 1)
        await job.batch([job.op_set(P("y"), 1)])
        await job.patch(P("n"), "add", 1)
        await client.set(P("claim"), "somebody else")
        writes: list[Any] = [
            lambda: job.set(P("x"), 2),
            lambda: job.delete(P("x")),
            lambda: job.delete_tree(P("x")),
            lambda: job.batch([job.op_set(P("y"), 2)]),
            lambda: job.batch([job.op_delete(P("y"))]),
            lambda: job.patch(P("n"), "add", 1),
            lambda: job.bound(session=None).set(P("x"), 2),
        ]
        for write in writes:
            with pytest.raises(errors.StaleFence):
                await write()
        assert (await job.get(P("x"))).value == 1
        await client.set(P("x"), 3)


async def test_a_batch_is_all_or_nothing() -> None:
    async with both() as (_, client):
        done = await client.batch([client.op_set(P("a"), 1), client.op_set(P("b"), 2)])
        assert [(str(one.path), one.rev) for one in done] == [("a", 1), ("b", 2)]
        with pytest.raises(errors.Conflict):
            await client.batch(
                [client.op_delete(P("a")), client.op_set(P("b"), 3, chain=done[0].chain)]
            )
        assert (await client.get(P("a"))).value == 1
        assert [one.chain for one in await client.batch([client.op_delete(P("a"))])] == [None]
        too_many = [client.op_set(Path("x", n), n) for n in range(1001)]
        with pytest.raises(errors.BatchTooLarge):
            await client.batch(too_many)
        assert await client.batch([]) == []


async def test_patch_returns_the_new_value() -> None:
    async with both() as (_, client):
        assert (await client.patch(P("n"), "add", 2)).value == 2
        assert (await client.patch(P("n"), "add", 3)).value == 5
        with pytest.raises(errors.CannotPatch):
            await client.patch(P("n"), "append", 1)


async def test_a_full_line_is_not_tried_for_each_of_many_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = 0
    plain = connection_module.Connection._send_directly

    def count(self: connection_module.Connection, seq: int, data: bytes) -> bool:
        nonlocal tries
        tries += 1
        return plain(self, seq, data)

    monkeypatch.setattr(connection_module.Connection, "_send_directly", count)
    async with both() as (_, client):
        async with anyio.create_task_group() as tasks:
            for number in range(3_000):
                tasks.start_soon(client.set, Path("n", number), b"x" * 2_000)
        assert len(await client.list(P("n"))) == 3_000
        # A try copies all that waits.
        assert tries < 3_000 / connection_module.SLICE * 2


async def test_many_calls_are_in_flight_on_one_line() -> None:
    async with both() as (running, client):

        async def work(number: int) -> None:
            for step in range(5):
                await client.set(Path("n", number), step)
                assert (await client.get(Path("n", number))).value == step

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(work, number)
        assert len(running.server.connections) == 1
        assert running.server.engine.revision == 1000


async def test_messages_are_broadcast_as_values_and_as_bytes() -> None:
    async with both() as (_, client):
        async with client.monitor(P("t")) as values, client.monitor(P("t"), raw=True) as raws:
            await client.ping()
            await client.send(P("t.x"), {"a": 1})
            await client.send(P("t"), raw=b"\xff\x00")
            first, second = await take(values, 2)
            assert (first.topic, first.value) == (P("t.x"), {"a": 1})
            assert second.value == b"\xff\x00"
            assert not hasattr(first, "raw")
            first, second = await take(raws, 2)
            assert (first.raw, second.raw) == (b"\x81\xa1a\x01", b"\xff\x00")
            assert not hasattr(first, "value")
        with pytest.raises(TypeError):
            await client.send(P("t"))
        with pytest.raises(TypeError):
            await client.send(P("t"), 1, raw=b"")


async def test_a_slow_reader_of_messages_loses_the_oldest_and_is_told_how_many() -> None:
    async with both() as (_, client), client.monitor(P("t")) as monitor:
        await client.ping()
        for number in range(1500):
            await client.send(P("t"), number)
        await until(lambda: monitor.lost == 500)
        assert (await take(monitor))[0].value == 500


async def test_facts_about_the_server_and_any_action() -> None:
    async with both(name="me") as (running, client):
        assert (client.name, client.connected) == ("me", True)
        assert client.server.node == "test"
        assert client.server.url == running.url
        assert (await client.state())["connections"] == 1
        assert 0 < await client.ping() < 5
        assert (await client.request("ping", {})).fields["revision"] == 0
        with pytest.raises(errors.UnknownAction):
            await client.request("dance", {})
        with pytest.raises(errors.BadArguments, match="answered in parts"):
            await client.request("watch", {"path": P("a")})
        await until(lambda: running.server.describe()["watchers"] == 0)
        with pytest.raises(errors.BadArguments, match="no argument 'much'"):
            await client.request("ping", {"much": 1})


async def test_what_cannot_be_sent_is_refused_and_harms_nothing() -> None:
    async with both() as (_, client):
        with pytest.raises(errors.BadValue):
            await client.set(P("a"), object())
        with pytest.raises(errors.BadValue, match="delete the entry"):
            await client.set(P("a"), NotGiven)
        with pytest.raises(errors.FrameTooLarge):
            await client.set(P("a"), b"x" * 2_000_000)
        with pytest.raises(errors.BadPath):
            await client.set(Path(None, "session"), 1)
        with pytest.raises(errors.BadArguments):
            client.watch(P("a"), since="yesterday")  # type: ignore[arg-type]
        with pytest.raises(errors.Behind):
            async with client.watch(P("a"), since=Mark(rev=99, epoch=client.server.epoch)) as watch:
                await take(watch)
        assert (await client.set(P("a"), 1)).rev == 1
