"""Mirrors and active objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from moat_kv import ClientEntry, ClientRoot, NotGiven, P, Path, config, errors, open_client
from moat_kv.testing.server import running_server
from tests.client.proxy import port_of, proxied
from tests.client.waiting import both, until

pytestmark = pytest.mark.anyio


def shown(root: ClientEntry) -> dict[str, Any]:
    """All values of a mirror, by relative path."""
    entries: Iterator[ClientEntry] = iter([root, *root.all_children])
    return {str(one.path): one.value for one in entries if one.value is not NotGiven}


async def test_a_mirror_shows_the_subtree_and_its_changes() -> None:
    async with both() as (_, client):
        await client.set(P("a"), 0)
        await client.set(P("a.b.c"), 1)
        await client.set(P("x"), 1)
        async with client.mirror(P("a")) as root:
            assert shown(root) == {":": 0, "b.c": 1}
            written = await client.set(P("a.b.d"), {"t": 2})
            await root.wait_rev(written.rev)
            assert root["b"]["d"].value.t == 2
            assert root[P("b.d")] is root["b"]["d"]
            entry = root["b"]["d"]
            assert (entry.name, entry.path, entry.absolute) == ("d", P("b.d"), P("a.b.d"))
            assert (entry.rev, entry.at, entry.chain) == (written.rev, written.at, written.chain)
            assert (entry.parent, entry.root) == (root["b"], root)
            assert root["b"].value is NotGiven
            assert (list(root), list(root["b"]), len(root["b"])) == (["b"], ["c", "d"], 2)
            assert [name for name, _ in root["b"].items()] == ["c", "d"]
            assert [one.value for one in root["b"].values()] == [1, {"t": 2}]
            assert "b" in root
            assert P("b.c") in root
            assert "c" not in root
            assert root.get("c") is None
            with pytest.raises(KeyError):
                _ = root["c"]
            await root.wait_rev((await client.delete(P("a.b.c"))).rev)
            await root.wait_rev((await client.delete(P("a.b.d"))).rev)
            assert shown(root) == {":": 0}
            assert list(root) == []
            assert entry.value is NotGiven


async def test_of_two_creators_who_both_saw_nothing_one_wins() -> None:
    async with (
        both() as (_, client),
        client.mirror(P("a")) as root,
        client.mirror(P("a")) as second,
    ):
        one, other = root.follow(P("b"), create=True), second.follow(P("b"), create=True)
        seen, also_seen = one.chain, other.chain
        await one.update("one", chain=seen)
        with pytest.raises(errors.Conflict):
            await other.update("other", chain=also_seen)
        with pytest.raises(errors.Conflict):
            await other.delete(chain=also_seen)
        assert (await client.get(P("a.b"))).value == "one"
        await other.update("whoever is last")
        assert other.value == "whoever is last"


async def test_elements_that_python_thinks_equal_are_apart() -> None:
    async with both() as (_, client), client.mirror(P("a")) as root:
        for element in (1, True, 1.0, "1", None, (1, "x"), b"1"):
            await root.follow(Path(element), create=True).update(repr(element))
        assert [entry.value for entry in root.values()] == [repr(name) for name in root]
        assert root[True].value == "True"
        assert root[1].value == "1"
        assert root[(1, "x")].value == "(1, 'x')"
        assert len(root) == 7


async def test_a_write_through_an_entry_returns_when_it_is_seen() -> None:
    async with both() as (_, client), client.mirror(P("a")) as root:
        entry = root.follow(P("x.y"), create=True)
        for number in range(50):
            await entry.update(number)
            assert entry.value == number
        assert root["x"]["y"] is entry
        await entry.set_value("set")
        assert entry.value == "set"
        with pytest.raises(errors.Conflict):
            await entry.update(1, expect=entry.rev + 5)
        await entry.update("chained", chain=entry.chain)
        await entry.delete()
        assert entry.value is NotGiven
        assert "x" not in root
        await entry.delete()
        await entry.update(1, wait=False)
        await until(lambda: entry.value == 1)
        assert root["x"]["y"] is entry


async def test_follow_finds_or_makes_entries() -> None:
    async with both() as (_, client), client.mirror(P("a")) as root:
        with pytest.raises(KeyError):
            root.follow(P("x"))
        with pytest.raises(TypeError):
            root.follow("x")  # type: ignore[arg-type]
        assert root.follow(Path()) is root
        entry = root.follow(P("x.y"), create=True)
        assert root.follow(P("x.y"), create=True) is entry
        assert "x" not in root
        del entry
        gc.collect()
        assert not root.loose


async def test_entries_that_come_and_go_leave_nothing_behind() -> None:
    async with both() as (_, client), client.mirror(P("a")) as root:
        for number in range(200):
            await client.set(Path("a", "n", number), 1)
            await client.delete(Path("a", "n", number))
        await until(lambda: root.seen_rev == 400)
        gc.collect()
        assert shown(root) == {}
        assert not root.loose
        assert not root._children


class Note(ClientEntry):
    """Keeps what it is told."""

    def __init__(self, parent: ClientEntry | None, name: Any, root: ClientRoot) -> None:
        super().__init__(parent, name, root)
        self.seen: list[Any] = []

    def updated(self) -> None:
        self.seen.append(self.value)


class Notes(ClientRoot):
    child_type = Note

    @classmethod
    def place(cls, places: config.Places) -> Path:
        return places.lock


class SlowNote(Note):
    async def updated(self) -> None:  # type: ignore[override]
        await anyio.sleep(0.01)
        self.seen.append(self.value)
        if self.value == "bad":
            raise LookupError("mine")


class SlowNotes(ClientRoot):
    def child_type(self, name: Any) -> type[ClientEntry]:
        return SlowNote if name == "slow" else Note


async def test_updated_is_called_after_each_change() -> None:
    async with both() as (_, client):
        await client.set(P("a.b"), 1)
        async with client.mirror(P("a"), Notes) as root:
            entry = root["b"]
            assert isinstance(entry, Note)
            await entry.update(2)
            await entry.delete()
            await entry.update(3)
            assert entry.seen == [1, 2, NotGiven, 3]
            await client.set(P("a.b.deep.er"), 1)
            await until(lambda: P("b.deep.er") in root)
            assert isinstance(root[P("b.deep.er")], Note)


async def test_an_async_updated_runs_in_order_and_one_that_fails_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with both() as (_, client), client.mirror(P("a"), SlowNotes) as root:
        entry = root.follow(P("slow"), create=True)
        assert isinstance(entry, SlowNote)
        assert isinstance(root.follow(P("other"), create=True), Note)
        await entry.update("bad")
        await until(lambda: entry.seen == ["bad"])
        await entry.update(1)
        await entry.update(2)
        await until(lambda: entry.seen[-1] == 2)
        assert "updated() of <SlowNote a.slow 'bad'> failed" in caplog.text


class Faulty(ClientRoot):
    def updated(self) -> None:
        raise LookupError("mine")


async def test_an_updated_that_fails_is_logged_and_the_mirror_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with both() as (_, client), client.mirror(P("a"), Faulty) as root:
        await root.update(1)
        await root.update(2)
        assert root.value == 2
        assert caplog.text.count("LookupError: mine") == 2


class Confused(ClientRoot):
    def updated(self) -> Any:
        return self.value


async def test_an_updated_that_returns_something_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with both() as (_, client), client.mirror(P("a"), Confused) as root:
        await root.update(1)
        assert "make it `async def` to be awaited" in caplog.text


async def test_a_handler_is_shared_by_class_and_path() -> None:
    async with both() as (_, client):
        roots: list[Notes] = []

        async def ask() -> None:
            roots.append(await Notes.as_handler(client, path=P("a"), subpath=P("b")))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
        assert len({id(root) for root in roots}) == 1
        assert roots[0].base == P("a.b")
        other = await Notes.as_handler(client, path=P("a"))
        assert other is not roots[0]
        assert await ClientRoot.as_handler(client, path=P("a")) is not other
        bound = client.bound(fence=(P("claim"), 1))
        assert (await Notes.as_handler(bound, path=P("a"))).client is bound
        with pytest.raises(TypeError, match="no place of its own"):
            await ClientRoot.as_handler(client)


async def test_a_handler_finds_its_place_in_the_network() -> None:
    async with both() as (_, client):
        assert (await Notes.as_handler(client, subpath=P("x"))).base == P(":.moat.kv.lock.x")
        places = config.Places(lock=P("elsewhere"))
        assert (await Notes.as_handler(client, places=places)).base == P("elsewhere")
        await client.set(config.CONFIG_PLACE, {"places": {"lock": "moved.here"}})
        assert (await Notes.as_handler(client)).base == P("moved.here")


async def test_a_handler_that_is_refused_raises_and_can_be_asked_for_again() -> None:
    async with both() as (_, client):
        for _ in range(2):
            with pytest.raises(errors.BadPath):
                await Notes.as_handler(client, path=Path(None, "x"))
        assert not client.shared.mirrors


async def test_a_mirror_is_current_again_after_a_break() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        open_client(running.url) as other,
    ):
        await other.set(P("a.stays"), 1)
        await other.set(P("a.goes"), 1)
        root = await Notes.as_handler(client, path=P("a"))
        stays, goes = root["stays"], root["goes"]
        assert isinstance(stays, Note)
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        assert shown(root) == {"stays": 1, "goes": 1}
        await other.delete(P("a.goes"))
        last = await other.set(P("a.comes"), 1)
        proxy.accept()
        await root.wait_rev(last.rev)
        assert shown(root) == {"stays": 1, "comes": 1}
        assert stays.seen == [1]
        assert goes.value is NotGiven


async def test_a_mirror_of_another_epoch_takes_the_whole_state_anew() -> None:
    async with (
        running_server("one", tcp=True) as one,
        running_server("two", tcp=True) as two,
        proxied(one.url) as proxy,
        open_client(proxy.url) as client,
        open_client(two.url) as writer,
    ):
        await client.set(P("a.same"), 1)
        await client.set(P("a.goes"), 1)
        await client.set(P("a.goes.too"), 1)
        root = await Notes.as_handler(client, path=P("a"))
        same, goes = root["same"], root["goes"]
        assert isinstance(goes, Note)
        await writer.set(P("a.same"), 2)
        proxy.target = port_of(two.url)
        await proxy.cut()
        await until(lambda: shown(root) == {"same": 2})
        assert root["same"] is same
        assert goes.seen == [1, NotGiven]
        assert list(root) == ["same"]


async def test_waiting_for_a_mirror_ends_in_time_and_with_the_client() -> None:
    async with both() as (_, client):
        root = await Notes.as_handler(client, path=P("a"))
        # Only now: the mirror's start is not what is to be too slow.
        client.shared.link.request_timeout_s = 0.2
        with pytest.raises(errors.RequestTimeout):
            await root.wait_rev(99)
    with pytest.raises(errors.Disconnected):
        await root.wait_rev(99)


async def test_a_mirror_holds_many_entries_and_is_read_at_once() -> None:
    async with both() as (_, client):
        for start in range(0, 10_000, 1000):
            await client.batch(
                [client.op_set(Path("a", n % 100, n), n) for n in range(start, start + 1000)]
            )
        async with client.mirror(P("a")) as root:
            assert sorted(entry.value for entry in root.all_children if entry.rev) == list(
                range(10_000)
            )
            assert root[7][9907].value == 9907
