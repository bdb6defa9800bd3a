"""Declared aggregates."""

from __future__ import annotations

import itertools
import math
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from moat_kv import codec, coord
from moat_kv.coord import aio, fields
from moat_kv.testing.server import RunningServer
from tests.coord.test_locks import two

DONE: list[tuple[str, dict[str, Any]]] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    DONE.clear()


class Page(aio.Model):
    """One field of each kind."""

    count = aio.Sum()
    weight = aio.Sum(float)
    stock = aio.Diff()
    pages = aio.ListAppend()
    users = aio.SetAppend()
    recent = aio.WindowedList(2)
    slowest = aio.Max()
    fastest = aio.Min()
    mood = aio.Last()

    async def on_complete(self, total: Any) -> None:
        assert self.execution_id is not None
        DONE.append((self._id, dict(total)))


@pytest.mark.anyio
async def test_the_last_to_end_gets_the_whole_networks_aggregate() -> None:
    async with two() as (_, one, other):
        mine = Page(one, "p", count=1, pages=["a"], users={"x"}, mood="fine")
        theirs = Page(other, "p", count=2, weight=1.5, stock=3, users=["x", "y"], slowest=7)
        await theirs.cache()
        await mine.add(count=5, recent=[(1, "a"), (3, "c")], fastest=0.5)
        await theirs.add(recent=[(2, "b")], fastest=2, slowest=3, mood="better")
        assert (mine.count, mine.users, mine.slowest, mine.mood) == (6, {"x"}, None, "fine")
        assert theirs.values["stock"] == -3
        assert not await mine.end_session()
        assert DONE == []
        assert await theirs.end_session()
        assert [
            (
                "p",
                {
                    "count": 8,
                    "weight": 1.5,
                    "stock": -3,
                    "pages": ["a"],
                    "users": {"x", "y"},
                    "recent": [(2, "b"), (3, "c")],
                    "slowest": 7,
                    "fastest": 0.5,
                    "mood": "better",
                },
            )
        ] == DONE


@pytest.mark.anyio
async def test_aggregates_go_through_a_cache() -> None:
    async with two() as (_, one, _other):
        cache = aio.LruCache[Page](max_entries=2)
        for number in range(30):
            await cache.set(number % 3, Page(one, number % 3, count=1))
        await cache.expire_all()
        assert sum(total["count"] for _, total in DONE) == 30


@pytest.mark.anyio
async def test_what_does_not_fit_is_refused_by_name() -> None:
    async with two() as (_, one, _other):
        page = Page(one, "p")
        bad: dict[str, Any] = {
            "count": 1.5,
            "weight": True,
            "stock": "1",
            "pages": "text",
            "users": [[1]],
            "recent": [("x", 1)],
            "slowest": [1],
            "fastest": None,
        }
        for name, value in bad.items():
            with pytest.raises(TypeError, match=f"{name} takes"):
                await page.add(**{name: value})
        for value in ("text", 5):
            with pytest.raises(TypeError, match="users takes a set or a list"):
                await page.add(users=value)
        with pytest.raises(TypeError, match="takes a list of pairs"):
            await page.add(recent=[1])
        with pytest.raises(TypeError, match="has no field 'hits'; it has count"):
            Page(one, "p", hits=1)
        assert page.values == Page(one, "p").values
        with pytest.raises(NotImplementedError, match="with the whole"):
            await aio.Model(one, "p").end_session()
        with pytest.raises(TypeError, match="cannot be called merge"):
            type("Bad", (aio.Model,), {"merge": aio.Sum()})
        with pytest.raises(ValueError, match="at least one entry"):
            fields.WindowedList(0)
        with pytest.raises(NotImplementedError):
            fields.Field().taken(1)
        with pytest.raises(NotImplementedError):
            fields.Field().merged(1, 2)


@pytest.mark.anyio
async def test_a_cleared_aggregate_is_as_at_the_start() -> None:
    async with two() as (_, one, _other):
        page = Page(one, "p", count=3, users=["x"])
        await page._clear()
        assert page.values == Page(one, "p").values


@pytest.mark.parametrize(
    ("field", "given"),
    [
        (fields.Sum(float), math.nan),
        (fields.Sum(float), 10**400),
        (fields.Max(), math.nan),
        (fields.WindowedList(), [(math.nan, "x")]),
    ],
    ids=["sum of nan", "sum of too much", "highest nan", "rank nan"],
)
def test_a_value_that_would_spoil_the_whole_is_refused(field: fields.Field, given: Any) -> None:
    with pytest.raises(TypeError, match="takes a"):
        field.taken(given)


def test_numbers_and_texts_of_several_processes_can_be_compared() -> None:
    assert fields.Max().merged(fields.Max().taken(3), fields.Max().taken("a")) == "a"
    assert fields.Min().merged("a", 3) == 3


def test_members_of_a_set_are_what_was_given_after_their_way_through_the_tree() -> None:
    field = fields.SetAppend()
    given = {(1, ("a", None)), b"x", 2}
    assert field.shown(codec.unpack(codec.pack(field.taken(given)))) == given


_EXACT = [
    (fields.Sum(), strategies.integers(-9, 9)),
    (fields.Diff(), strategies.integers(-9, 9)),
    (fields.SetAppend(), strategies.lists(strategies.integers(0, 5))),
    (
        fields.WindowedList(3),
        strategies.lists(strategies.tuples(strategies.integers(0, 3), strategies.integers(0, 3))),
    ),
    (fields.Max(), strategies.integers() | strategies.text()),
    (fields.Min(), strategies.integers() | strategies.text()),
    (fields.Last(), strategies.integers()),
]


@pytest.mark.parametrize(("field", "values"), _EXACT, ids=lambda x: type(x).__name__)
@hypothesis.given(data=strategies.data())
def test_merging_in_any_order_and_grouping_gives_the_same(
    field: fields.Field, values: Any, data: strategies.DataObject
) -> None:
    given = [field.taken(each) for each in data.draw(strategies.lists(values, max_size=4))]
    found = []
    for order in itertools.permutations(given):
        left = field.start()
        for state in order:
            left = field.merged(left, state)
        right = field.start()
        for state in order:
            right = field.merged(state, right)
        found += [field.shown(left), field.shown(right)]
    assert all(each == found[0] for each in found)


class PlainPage(coord.Model):
    """For threads."""

    count = coord.Sum()

    def on_complete(self, total: Any) -> None:
        DONE.append((self._id, dict(total)))


def test_threads_have_aggregates(served: RunningServer) -> None:
    with coord.Process(served.url) as one, coord.Process(served.url) as other:
        pages = [PlainPage(each, "p", count=1) for each in (one, other)]
        pages[0].add(count=10)
        assert not pages[0].end_session()
        assert pages[1].end_session()
        assert DONE == [("p", {"count": 12})]
