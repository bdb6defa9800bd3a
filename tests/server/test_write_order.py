"""Writes, deletions of subtrees and patches of many: in order, each counted, none harmed."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from moat_kv import codec, errors
from moat_kv.engine.memory import MemoryEngine
from moat_kv.path import P, Path
from moat_kv.proto.messages import State
from moat_kv.testing.server import running_server
from tests.client.waiting import until
from tests.line import connected
from tests.server.attacking import MIB, HeldEngine, answers, requests

pytestmark = pytest.mark.anyio


async def test_a_deletion_of_a_subtree_keeps_its_place_among_the_writes() -> None:
    async with running_server() as running, connected(running.url) as line:
        before = [await line.send("set", n, path=Path("a", n)) for n in range(50)]
        tree = await line.send("delete_tree", path=P("a"))
        after = [await line.send("set", "new", path=Path("a", n)) for n in (7, 100)]
        for seq in (*before, *after):
            assert (await line.next(seq)).state == State.REPLY
        reply = await line.next(tree)
        # One that was written over before its turn came is not deleted any more.
        assert reply.fields["count"] in (49, 50)
        rows = await line.rows("get_tree", path=P("a"))
        assert sorted((row[0][0], codec.unpack(row[1])) for row in rows) == [
            (7, "new"),
            (100, "new"),
        ]


async def test_a_resumed_watch_starts_anew_if_deletions_are_dropped_on_the_way() -> None:
    engine = MemoryEngine(tombstone_s=0)
    async with running_server(engine=engine) as running, connected(running.url) as line:
        for start in range(0, 9_000, 1_000):
            writes = [[Path("a", start + n), b"\xc0", {}] for n in range(1_000)]
            await line.ask("batch", writes=writes)
        mark = [engine.epoch, engine.revision]
        await line.ask("delete", path=Path("a", 8_999))
        seq = await line.send("watch", path=P("a"), since=mark)
        while not running.server.store.watchers.count:
            await anyio.lowlevel.checkpoint()
        await engine.compact()
        gone = reset = False
        while True:
            part = await line.next(seq)
            reset |= "reset" in part.fields
            gone |= any(row[1] is None for row in part.fields.get("rows", ()))
            if part.fields.get("ready"):
                break
        # Either it was told of the deletion, or that it has to begin from nothing.
        assert gone or reset


# Patches ----------------------------------------------------------------------------------------


async def test_a_patch_cannot_make_a_value_larger_than_any_write_could() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.ask("set", [b"x" * 600_000], path=P("a"))
        with pytest.raises(errors.CannotPatch, match="would have 12"):
            await line.ask("patch", b"x" * 600_000, path=P("a"), op="append")
        assert len((await line.ask("get", path=P("a"))).value or b"") < MIB


async def test_numbers_that_do_not_go_together_harm_nobody_else() -> None:
    engine = HeldEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        # It is tried when nothing is there, and again when somebody's integer is.
        number = await line.send("set", 10**400, path=P("a"))
        patch = await line.send("patch", 1.5, path=P("a"), op="add")
        await until(lambda: len(engine.held or ()) == 2)
        engine.release()
        assert (await line.next(number)).state == State.REPLY
        assert (await line.next(patch)).fields["error"] == "CannotPatch"
        await line.ask("set", 1, path=P("a"))


async def test_any_number_of_patches_of_one_path_all_count() -> None:
    async with running_server() as running, connected(running.url) as line:
        await line.stream.send(requests("patch", 3_000, b"\x01", path=P("n"), op="add"))
        await answers(line, 3_000)
        assert (await line.ask("get", path=P("n"))).value == codec.pack(3_000)
        assert not running.server.patches._waiting


async def test_a_server_can_stop_in_the_middle_of_patches_and_endings() -> None:
    engine = HeldEngine()
    async with running_server(engine=engine) as running, connected(running.url) as line:
        id = (await line.ask("session_open")).fields["session"]
        await line.send("set", 1, path=P("mine"), session=id)
        await line.send("session_close", session=id)
        await line.stream.send(requests("patch", 50, b"\x01", path=P("n"), op="add"))
        await until(lambda: len(engine.held or ()) >= 4)
        # Everything is answered while the server is on its way out.
        engine.release()
    assert running.server.stopping
