"""What clients see of a server that is cut off from its network, and comes back."""

from __future__ import annotations

import pathlib
from typing import Any

import anyio
import pytest

from moat_kv import NotGiven, P, errors, open_client
from moat_kv.client import lost, results
from moat_kv.path import Path
from tests.client import waiting
from tests.server.sites import site

pytestmark = pytest.mark.anyio

A, B = P("a"), P("b.c")


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


async def test_a_deletion_of_nothing_is_kept_and_says_that_nothing_was_there(
    tmp_path: pathlib.Path,
) -> None:
    async with site(tmp_path) as here:
        client = here.client
        await client.set(A, 1)
        await client.delete(A)
        here.remote.cut()
        for path in (A, B):
            result = await client.delete(path)
            assert (result.pending, result.deleted) == (True, False)
            await client.set(path, 2)
            # Together, so that the first may be on its way to the disk yet.
            async with anyio.create_task_group() as tasks:
                answers: list[bool] = []

                async def delete(path: Path, answers: list[bool]) -> None:
                    answers.append((await client.delete(path)).deleted)

                for _ in range(3):
                    tasks.start_soon(delete, path, answers)
            assert sorted(answers) == [False, False, True]
        # It may be news elsewhere.
        here.elsewhere(B, "other")
        here.log.now += 5
        await client.delete(B)
        here.remote.heal()
        await here.settled()
        assert "value" not in await client.get(B)


async def test_what_needs_agreement_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    async with site(tmp_path) as here:
        client = here.client
        first = await client.set(A, 1)
        here.remote.cut()
        # Nobody waits for the network; that would be for a minute.
        with anyio.fail_after(20):
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
            place = P(":.moat.kv.conflict")
            await waiting.until(lambda: place in root and len(root[place]))
            (conflict,) = root[place].values()
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


async def test_the_writer_is_told_that_its_write_has_lost(tmp_path: pathlib.Path) -> None:
    async with site(tmp_path) as here, open_client(here.url) as bystander:
        await here.client.set(A, 1)
        here.remote.cut()
        async with here.client.conflicts() as told, bystander.conflicts() as told_others:
            kept = await here.client.set(A, 2)
            assert (here.client.kept_writes, bystander.kept_writes) == (1, 0)
            here.log.now += 5
            here.elsewhere(A, 3)
            here.remote.heal()
            (found,) = await waiting.take(told)
            assert (found.path, found.value, found.deleted) == (A, 2, False)
            assert (found.id, found.node) == (kept.id, "test")
            assert found.winner is not None
            assert found.winner.node == "other"
            assert not told_others.waiting()


async def test_what_has_lost_before_the_line_came_is_told_on_it(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with site(tmp_path) as here:
        client = here.client
        await client.set(A, 1)
        here.remote.cut()
        kept = await client.delete(A)
        here.log.now += 5
        here.elsewhere(A, 3)
        # Its line ends before there is anything to tell.
        breaks = anyio.Event()
        client.add_connection_listener(lambda is_up: None if is_up else breaks.set())
        for connection in list(here.server.connections):
            connection.break_off()
        await breaks.wait()
        here.remote.heal()
        await waiting.until(lambda: "has lost against one from other" in caplog.text)
        (found,) = await lost.find_all(client)
        assert (found.id, found.deleted, found.value) == (kept.id, True, None)


async def test_a_lost_write_is_put_back_if_nothing_has_changed(tmp_path: pathlib.Path) -> None:
    async with site(tmp_path) as here:
        client = here.client
        await client.set(A, 1)
        here.remote.cut()
        await client.set(A, 2)
        await client.delete(B)
        here.log.now += 5
        here.elsewhere(A, 3)
        here.elsewhere(B, 4)
        here.remote.heal()
        await here.settled()
        of_b, of_a = sorted(await lost.find_all(client), key=lambda each: each.deleted)[::-1]
        assert (of_a.path, of_b.path) == (A, B)
        present = await client.get(A)
        with pytest.raises(errors.Conflict):
            await lost.restore(client, of_a, expect=present.rev - 1)
        rev = await lost.restore(client, of_a, expect=present.rev)
        assert ((await client.get(A)).value, (await client.get(A)).rev) == (2, rev)
        with pytest.raises(errors.NotFound):
            await lost.find(client, of_a.id)
        with pytest.raises(errors.Conflict):
            await lost.restore(client, of_a)  # somebody else was quicker
        await lost.restore(client, await lost.find(client, of_b.id))
        assert "value" not in await client.get(B)
        assert await lost.find_all(client) == []
