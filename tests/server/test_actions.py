"""What the server answers, request by request, over a bare line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from moat_kv import codec, errors
from moat_kv.path import P, Path
from moat_kv.proto.messages import State
from moat_kv.testing.server import running_server
from tests.line import Line, connected

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def a_line() -> AsyncIterator[Line]:
    async with running_server() as running, connected(running.url) as line:
        yield line


async def test_what_was_set_is_got_with_its_revision() -> None:
    async with a_line() as line:
        written = await line.ask("set", {"x": 1}, path=P("a.b"))
        got = await line.ask("get", path=P("a.b"))
        assert got.value is not None
        assert codec.unpack(got.value) == {"x": 1}
        assert got.fields == written.fields
        assert written.fields["rev"] == 1


async def test_what_is_not_there_has_revision_0_and_no_value() -> None:
    async with a_line() as line:
        got = await line.ask("get", path=P("a"))
        assert (got.fields, got.value) == ({"rev": 0}, None)


async def test_delete_says_whether_there_was_something() -> None:
    async with a_line() as line:
        await line.ask("set", 1, path=P("a"))
        assert (await line.ask("delete", path=P("a"))).fields["deleted"] is True
        assert (await line.ask("delete", path=P("a"))).fields["deleted"] is False
        assert (await line.ask("delete", path=P("never"))).fields["deleted"] is False
        assert (await line.ask("get", path=P("a"))).fields == {"rev": 0}


async def test_expect_is_compare_and_set() -> None:
    async with a_line() as line:
        rev = (await line.ask("set", 1, path=P("a"), expect=0)).fields["rev"]
        with pytest.raises(errors.Conflict) as caught:
            await line.ask("set", 2, path=P("a"), expect=0)
        assert (caught.value.path, caught.value.expect, caught.value.have) == ("a", 0, rev)
        rev = (await line.ask("set", 2, path=P("a"), expect=rev)).fields["rev"]
        await line.ask("delete", path=P("a"), expect=rev)
        await line.ask("set", 3, path=P("a"), expect=0)


async def test_idem_makes_no_revision_for_the_same_value() -> None:
    async with a_line() as line:
        rev = (await line.ask("set", 1, path=P("a"))).fields["rev"]
        assert (await line.ask("set", 1, path=P("a"), idem=True)).fields["rev"] == rev
        assert (await line.ask("set", 1.0, path=P("a"), idem=True)).fields["rev"] == rev + 1


@pytest.mark.parametrize(
    ("kind", "error"),
    [("guard", errors.GuardFailed), ("fence", errors.StaleFence)],
    ids=["guard", "fence"],
)
async def test_a_guarded_write_needs_the_other_entry_unchanged(
    kind: str, error: type[errors.GuardFailed]
) -> None:
    async with a_line() as line:
        rev = (await line.ask("set", 1, path=P("claim"))).fields["rev"]
        await line.ask("set", 1, path=P("a"), **{kind: [P("claim"), rev]})
        await line.ask("set", 2, path=P("claim"))
        with pytest.raises(error) as caught:
            await line.ask("set", 2, path=P("a"), **{kind: [P("claim"), rev]})
        assert caught.value.have == rev + 2
        got = await line.ask("get", path=P("a"))
        assert got.value == codec.pack(1)


async def test_writes_of_one_line_enter_in_the_order_they_were_sent() -> None:
    async with a_line() as line:
        seqs = [await line.send("set", n, path=P("a")) for n in range(50)]
        revs = [(await line.next(seq)).fields["rev"] for seq in seqs]
        assert revs == sorted(revs)
        assert (await line.ask("get", path=P("a"))).value == codec.pack(49)


async def test_a_batch_is_all_or_nothing() -> None:
    async with a_line() as line:
        await line.ask("set", 1, path=P("a"))
        one, two = codec.pack(1), codec.pack(2)
        answered = await line.ask("batch", writes=[[P("b"), one, {}], [P("a"), None, {}]])
        assert [row[0] for row in answered.fields["rows"]] == [2, 3]
        with pytest.raises(errors.Conflict):
            await line.ask("batch", writes=[[P("c"), one, {}], [P("b"), two, {"expect": 0}]])
        assert (await line.ask("get", path=P("c"))).value is None


@pytest.mark.parametrize(
    ("writes", "error", "words"),
    [
        pytest.param([[P("a"), b"\x01", {}]] * 2, errors.BadArguments, "only once", id="twice"),
        pytest.param([[P("a"), b"\x01"]], errors.BadArguments, "write 0", id="short"),
        pytest.param([[P("a"), b"\xc1", {}]], errors.BadValue, "bad value", id="value"),
        pytest.param(
            [[P("a"), b"\x01", {"hop": 1}]], errors.BadArguments, "no argument 'hop'", id="option"
        ),
        pytest.param(
            [[Path("a", n), b"\x01", {}] for n in range(1001)],
            errors.BatchTooLarge,
            "1001 paths",
            id="large",
        ),
    ],
)
async def test_a_bad_batch_is_refused(
    writes: list[object], error: type[Exception], words: str
) -> None:
    async with a_line() as line:
        with pytest.raises(error, match=words):
            await line.ask("batch", writes=writes)
        assert (await line.ask("ping")).fields["revision"] == 0


async def test_many_patches_at_once_all_count() -> None:
    async with running_server() as running:

        async def add(line: Line) -> None:
            for _ in range(20):
                await line.ask("patch", 1, path=P("n"), op="add")

        async with connected(running.url) as one, connected(running.url) as two:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(add, one)
                tasks.start_soon(add, two)
            assert (await one.ask("get", path=P("n"))).value == codec.pack(40)


async def test_a_patch_that_does_not_fit_changes_nothing() -> None:
    async with a_line() as line:
        await line.ask("set", "text", path=P("a"))
        with pytest.raises(errors.CannotPatch, match="the value is a str"):
            await line.ask("patch", 1, path=P("a"), op="add")
        assert (await line.ask("get", path=P("a"))).value == codec.pack("text")


async def test_get_tree_gives_relative_paths_parents_first() -> None:
    async with a_line() as line:
        for text in ("a.b.c", "a", "a.b", "x"):
            await line.ask("set", text, path=P(text))
        rows = await line.rows("get_tree", path=P("a"))
        assert [(str(row[0]), codec.unpack(row[1])) for row in rows] == [
            (":", "a"),
            ("b", "a.b"),
            ("b.c", "a.b.c"),
        ]
        rows = await line.rows("get_tree", path=P("a"), min_depth=1, max_depth=1)
        assert [str(row[0]) for row in rows] == ["b"]
        assert await line.rows("get_tree", path=P("nowhere")) == []


async def test_a_long_get_tree_does_not_hold_up_a_get() -> None:
    async with a_line() as line:
        value = codec.pack("x" * 100)
        for start in range(0, 20_000, 1_000):
            writes = [[Path("t", start + n), value, {}] for n in range(1_000)]
            await line.ask("batch", writes=writes)
        tree = await line.send("get_tree", path=P("t"))
        get = await line.send("get", path=P("t:1"))
        before = 0
        while not any(reply.seq == get for reply in line.waiting):
            before += len((await line.next(tree)).fields.get("rows", ()))
        assert before < 20_000


async def test_list_gives_names_values_and_children() -> None:
    async with a_line() as line:
        for text in ("a.b.c", "a.b.d", "a:1", "a.gone.x"):
            await line.ask("set", 1, path=P(text))
        await line.ask("delete", path=P("a.gone.x"))
        rows = await line.rows("list", path=P("a"))
        assert [(row[0], *row[1:]) for row in rows] == [(P("b"), False, 2), (P(":1"), True, 0)]


async def test_delete_tree_counts_what_it_deleted() -> None:
    async with a_line() as line:
        for start in (0, 1_000, 2_000):
            writes = [[Path("t", start + n), b"\x01", {}] for n in range(1_000)]
            await line.ask("batch", writes=writes)
        await line.ask("set", 1, path=P("other"))
        assert (await line.ask("delete_tree", path=P("t"))).fields["count"] == 3_000
        assert (await line.ask("delete_tree", path=P("t"))).fields["count"] == 0
        assert [str(row[0]) for row in await line.rows("get_tree", path=P(":"))] == ["other"]


async def test_history_is_newest_first() -> None:
    async with a_line() as line:
        for n in range(5):
            await line.ask("set", n, path=P("a"))
        await line.ask("delete", path=P("a"))
        rows = await line.rows("history", path=P("a"), limit=3)
        assert [(row[1] and codec.unpack(row[1]), row[2]) for row in rows] == [
            (None, 6),
            (4, 5),
            (3, 4),
        ]
        rows = await line.rows("history", path=P("a"), before=3)
        assert [row[2] for row in rows] == [2, 1]


async def test_an_entry_with_a_time_to_live_ends_unless_written_again() -> None:
    async with a_line() as line:
        # From before it is there: it may be over as soon as it is answered.
        seq = await line.send("watch", path=P("short"))
        assert (await line.next(seq)).state == State.START
        await line.ask("set", 1, path=P("renewed"), ttl_s=0.2)
        await line.ask("set", 2, path=P("renewed"))
        await line.ask("set", 1, path=P("short"), ttl_s=0.2)
        told: list[bytes | None] = []
        while not told or told[-1] is not None:
            told += [row[1] for row in (await line.next(seq)).fields.get("rows", ())]
        assert (await line.ask("get", path=P("renewed"))).value == codec.pack(2)


@pytest.mark.parametrize(
    ("action", "arguments", "error", "words"),
    [
        pytest.param("fly", {}, errors.UnknownAction, "'fly'", id="action"),
        pytest.param("get", {}, errors.BadArguments, "missing path", id="missing"),
        pytest.param("get", {"path": "a.b"}, errors.BadArguments, "path is a path", id="type"),
        pytest.param("get", {"path": P("a"), "x": 1}, errors.BadArguments, "'x'", id="unknown"),
        pytest.param("get", {"path": Path(None, "x")}, errors.BadPath, "system data", id="system"),
        pytest.param("set", {"path": P("a")}, errors.BadArguments, "value is missing", id="value"),
        pytest.param("delete", {"path": Path(None)}, errors.BadPath, "system", id="system-write"),
        pytest.param(
            "delete", {"path": P("a"), "guard": [1]}, errors.BadArguments, "guard", id="guard"
        ),
        pytest.param(
            "delete", {"path": P("a"), "expect": -1}, errors.BadArguments, "expect", id="expect"
        ),
        pytest.param(
            "get_tree", {"path": P("a"), "max_depth": -2}, errors.BadArguments, "depths", id="depth"
        ),
        pytest.param(
            "history", {"path": P("a"), "limit": 0}, errors.BadArguments, "limit", id="limit"
        ),
        pytest.param(
            "session_ping", {"session": "x"}, errors.SessionExpired, "session x", id="session"
        ),
    ],
)
async def test_bad_requests_get_named_errors_and_the_line_lives(
    action: str, arguments: dict[str, object], error: type[errors.MoatKvError], words: str
) -> None:
    async with a_line() as line:
        with pytest.raises(error, match=words):
            await line.ask(action, **arguments)
        assert (await line.ask("ping")).state == State.REPLY


async def test_state_says_what_the_server_holds() -> None:
    async with a_line() as line:
        await line.ask("set", 1, path=P("a"))
        reply = await line.ask("state")
        assert reply.value is not None
        facts = codec.unpack(reply.value)
        assert (facts.node, facts.entries, facts.revision, facts.connections) == ("test", 1, 1, 1)
        assert facts.trouble is None


async def test_a_client_that_has_seen_more_is_told_that_the_server_is_behind() -> None:
    async with running_server() as running, connected(running.url) as line:
        epoch = running.server.engine.epoch
        await line.ask("hello", client="c", seen=0, epoch=epoch)
        with pytest.raises(errors.Behind):
            await line.ask("hello", client="c", seen=5, epoch=epoch)
        await line.ask("hello", client="c", seen=5, epoch="another")
