"""What has come two ways is applied once, in order, and in whole groups."""

from __future__ import annotations

import pytest

from moat_kv.engine import age, nats_consumer, nats_feed, nats_record, nats_subjects
from moat_kv.entry import Record, Write
from moat_kv.path import Path
from moat_kv.testing import engine_probe

NAMES = nats_subjects.Names("x")


def item(rev: int, nth: int = 0, size: int = 1) -> nats_record.Delivered:
    write = Write(Path("n", rev), b"1", origin="me:1", tick=rev)
    body = nats_record.body(write, 0, nth, size)
    return nats_record.delivered(write.path, nats_record.Place(rev, 0, float(rev), 0), body)


def revs(applied: list[list[Record]]) -> list[int]:
    return [record.rev for records in applied for record in records]


def test_what_comes_twice_is_applied_once() -> None:
    replica = engine_probe.DictReplica()
    feed = nats_feed.Feed(NAMES, replica)
    pushed = [item(1), item(2), item(4), item(7)]
    feed._fed(pushed[:2], 2)
    feed._take([item(2), item(4), nats_consumer.Other(5, 5.0)])
    feed._fed(pushed[2:], 0)
    feed._take([nats_consumer.Other(5, 5.0), item(7), item(8)])
    assert revs(replica.applied) == [1, 2, 4, 7, 8]
    assert feed.revision == 8


def test_a_group_whose_halves_come_different_ways_is_applied_whole() -> None:
    replica = engine_probe.DictReplica()
    feed = nats_feed.Feed(NAMES, replica)
    group = [item(2, 0, 3), item(3, 1, 3), item(4, 2, 3)]
    feed._fed([item(1), *group[:2]], 1)
    assert (feed.revision, revs(replica.applied)) == (1, [1])
    feed._take(group)
    assert (feed.revision, revs(replica.applied)) == (4, [1, 2, 3, 4])
    feed._fed(group[2:], 0)
    assert revs(replica.applied) == [1, 2, 3, 4]


def test_all_that_comes_tells_the_time_whichever_way_and_however_old() -> None:
    up_s = age.up_s()
    feed = nats_feed.Feed(NAMES, engine_probe.DictReplica())
    feed._fed([nats_consumer.Other(1, 1_000.0), nats_consumer.Other(2, 1_001.0)], 0)
    assert feed.clock.is_set
    assert feed.clock.now(up_s, 0.0) <= 1_001.0
    # When the fourth was sent, it was between 2,003.5 and 2,004.
    feed.clock.acknowledged(4, up_s - 9.0, up_s - 8.5)
    feed._take([nats_consumer.Other(rev, 2_000.0 + rev) for rev in range(3, 9)])
    assert feed.clock.uncertain_s == pytest.approx(0.5)
    assert 2_003.5 <= feed.clock.now(up_s - 9.0, 0.0) <= 2_004.0
    feed.reset()
    feed.clock.acknowledged(1, up_s, up_s + 0.5)
    assert feed.clock.is_waiting
