"""A tree that is moved from one engine into another: nothing is lost, nothing is written over."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from moat_kv import P, codec, errors
from moat_kv.engine import base, moving
from moat_kv.engine.memory import MemoryEngine
from moat_kv.engine.sqlite import SqliteEngine
from moat_kv.entry import Write

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(engine: base.Engine) -> AsyncIterator[moving.Held]:
    held = moving.Held()
    async with engine.running(held):
        yield held


async def write(engine: base.Engine, path: str, value: object, **options: object) -> None:
    finished = anyio.Event()
    packed = None if value is None else codec.pack(value)
    write = Write(P(path), packed, origin="n1:x", tick=write_ticks(), **options)  # type: ignore[arg-type]
    engine.submit((write,), lambda outcome: finished.set())
    await finished.wait()


def write_ticks(last: list[int] = [0]) -> int:  # noqa: B006  # one count for all of them
    last[0] += 1
    return last[0]


async def test_entries_keep_all_but_their_revisions(tmp_path: pathlib.Path) -> None:
    old, new = MemoryEngine(), SqliteEngine(tmp_path / "tree.sqlite")
    async with opened(old) as source, opened(new) as target:
        for number in range(3_000):
            await write(old, f"n:{number}", {"number": number})
        await write(old, "n:7", None)
        await write(old, "n:8", "newer", expires_at=2e9)
        await write(old, "mine", 1, session="s")
        await write(old, ":n.session.s", 1)
        told: list[tuple[int, int]] = []
        count = await moving.move(source, target, new, tell=lambda *each: told.append(each))
        assert (count, source.left_out()) == (3_000 - 1, 1)
        assert told[-1] == (count, count)
        assert set(target.heads) == set(source.heads) - {P("n:7"), P("mine"), P(":n.session.s")}
        for path, record in target.heads.items():
            assert record._replace(rev=0) == source.heads[path]._replace(rev=0)
        assert [each.path for each in target.live()] == [each.path for each in source.live()]
        assert old.epoch != new.epoch
    async with opened(new) as again:
        assert again.heads == target.heads


async def test_a_move_that_was_interrupted_goes_on() -> None:
    old, new = MemoryEngine(), MemoryEngine()
    async with opened(old) as source, opened(new) as target:
        for number in range(20):
            await write(old, f"n:{number}", number)
        new.trouble = "full"
        with pytest.raises(errors.StorageFailed):
            await moving.move(source, target, new)
        new.trouble = None
        half = moving.Held()
        half.apply(source.live()[:10])
        await moving.move(half, target, new)
        assert len(target.live()) == 10
        assert not await moving.has_others(source, old, target)
        await write(old, "n:3", "changed meanwhile")
        await write(old, "n:4", None)
        assert not await moving.has_others(source, old, target)
        assert await moving.move(source, target, new) == 19
        assert not await moving.has_others(source, old, target)
        assert [each.value for each in target.live()] == [each.value for each in source.live()]


async def test_what_others_wrote_counts_as_strange() -> None:
    old, new = MemoryEngine(), MemoryEngine()
    async with opened(old) as source, opened(new) as target:
        await write(old, "a", 1)
        await write(new, "gone", 1)
        await write(new, "gone", None)
        assert not await moving.has_others(source, old, target)
        await write(new, "b", 1)
        assert await moving.has_others(source, old, target)
        await write(new, "b", None)
        assert not await moving.has_others(source, old, target)
        await write(new, "a", 1)
        assert await moving.has_others(source, old, target)
