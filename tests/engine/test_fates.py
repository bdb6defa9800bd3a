"""The same winner whoever heals first, and nothing that comes back by itself."""

from __future__ import annotations

import pytest

from moat_kv import codec, conflicts, errors
from moat_kv.engine import age, fates
from moat_kv.engine.copy_store import Pending
from moat_kv.engine.fates import Fate, Verdict
from moat_kv.entry import Record
from moat_kv.path import P

PATH = P("a.b")
MOMENT = age.Moment("boot", 1.0, 2.0)


def kept(base: int = 5, value: bytes | None = b"mine", earlier: tuple[str, ...] = ()) -> Pending:
    return Pending(PATH, value, base, "n1:x", 7, MOMENT, 0.0, earlier)


def there(
    rev: int, *, at: float = 50.0, origin: str = "n2:y", tick: int = 1, value: bytes | None = b"v"
) -> Record:
    return Record(rev, PATH, value, at, origin, tick, None, None)


def test_a_write_goes_on_top_of_what_it_was_based_on() -> None:
    assert fates.judge(kept(), 60.0, there(5), []) == Verdict(Fate.WRITE, 5)
    assert fates.judge(kept(base=0), 60.0, None, []) == Verdict(Fate.WRITE, 0)


def test_a_write_that_was_stored_after_all_is_not_repeated() -> None:
    mine = there(6, origin="n1:x", tick=7)
    assert fates.judge(kept(), 60.0, mine, [mine]).fate is Fate.STORED
    over = there(9, at=10.0)
    assert fates.judge(kept(), 60.0, over, [over, mine]).fate is Fate.STORED


def test_an_earlier_write_of_the_same_server_is_no_rival() -> None:
    mine = there(6, origin="n1:x", tick=3, at=99.0)
    pending = kept(earlier=("n1:x:3",))
    assert fates.judge(pending, 60.0, mine, [mine]) == Verdict(Fate.WRITE, 6)
    rival = there(8, at=99.0)
    assert fates.judge(pending, 60.0, rival, [rival, mine]) == Verdict(Fate.LOSES, 8)


@pytest.mark.parametrize(
    ("at", "head", "fate"),
    [
        (60.0, there(6, at=50.0), Fate.WINS),
        (40.0, there(6, at=50.0), Fate.LOSES),
        (50.0, there(6, at=50.0, origin="n0:z"), Fate.WINS),
        (50.0, there(6, at=50.0, origin="n2:z"), Fate.LOSES),
        (60.0, there(6, at=50.0, value=None), Fate.WINS),
        (40.0, there(6, at=50.0, value=None), Fate.LOSES),
        (40.0, there(6, at=50.0, value=b"mine"), Fate.STORED),
    ],
)
def test_of_two_writes_the_later_one_wins(at: float, head: Record, fate: Fate) -> None:
    assert fates.judge(kept(), at, head, [head]) == Verdict(fate, 6)


@pytest.mark.parametrize("at", [40.0, 50.0, 60.0])
@pytest.mark.parametrize("tick", [6, 8])
@pytest.mark.parametrize("origin", ["n0:x", "n1:x", "n2:x"])
def test_both_sides_find_the_same_winner(at: float, tick: int, origin: str) -> None:
    if (origin, tick) == ("n1:x", 7):
        return
    here = kept(base=0)
    other = Pending(PATH, b"other", 0, origin, tick, MOMENT, 0.0)
    first_in = there(3, at=50.0, origin="n1:x", tick=7, value=b"mine")
    other_first = there(3, at=at, origin=origin, tick=tick, value=b"other")
    theirs = fates.judge(other, at, first_in, [first_in]).fate
    mine = fates.judge(here, 50.0, other_first, [other_first]).fate
    assert {theirs, mine} == {Fate.WINS, Fate.LOSES}


def test_an_entry_whose_deletion_is_forgotten_does_not_come_back() -> None:
    assert fates.judge(kept(base=5), 60.0, None, []) == Verdict(Fate.LOSES, 0)
    assert fates.judge(kept(base=5, value=None), 60.0, None, []).fate is Fate.STORED


@pytest.mark.parametrize("value", [None, codec.pack({"x": [1, None]}), codec.pack("text")])
@pytest.mark.parametrize("winner", [None, conflicts.Side("n2:y:3", 11.5)])
def test_a_conflict_is_an_entry_like_any_other(
    value: bytes | None, winner: conflicts.Side | None
) -> None:
    conflict = conflicts.Conflict(PATH, value, conflicts.Side("n:1:x:7", 10.25), winner)
    packed = conflicts.pack(conflict)
    codec.check(packed)
    assert conflicts.unpack(packed) == conflict
    assert len(packed) <= len(value or b"") + conflicts.OVERHEAD_BYTES
    fields = codec.unpack(packed)
    assert fields.node == "n:1"
    assert ("value" in fields) is (value is not None)
    assert conflict.place == P(":.moat.kv.conflict") / "n:1:x:7"


def test_what_is_no_conflict_is_said_to_be_none() -> None:
    for value in (3, {}, {"path": PATH, "id": "a:b:1"}):
        with pytest.raises(errors.BadValue):
            conflicts.unpack(codec.pack(value))
