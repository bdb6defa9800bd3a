"""Counting clicks and impressions of widgets, in any number of processes, into one SQLite database.

    python widgets.py count --database widgets.sqlite --events 10000
    python widgets.py report --database widgets.sqlite

Each process merges what it sees in a cache, and the last that holds a widget writes it. The writing
stores the id of the execution in the same transaction, so that one that is tried again, by this or
another process, counts once.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from moat_kv.coord import LruCache, Process, Update

_TABLES = """
    create table if not exists widget (
        parent_post_id integer, target_post_id integer,
        impressions integer not null default 0, clicks integer not null default 0,
        primary key (parent_post_id, target_post_id)
    );
    create table if not exists execution (id text primary key);
"""
_ADD = """
    insert into widget values (:parent_post_id, :target_post_id, :impressions, :clicks)
    on conflict do update set
        impressions = impressions + excluded.impressions, clicks = clicks + excluded.clicks
"""

Event = dict[str, Any]


@contextlib.contextmanager
def opened(database: str) -> Iterator[sqlite3.Connection]:
    """The database, with its tables. Each thread opens its own."""
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    try:
        connection.execute("pragma journal_mode=wal")
        connection.executescript(_TABLES)
        yield connection
    finally:
        connection.close()


class WidgetUpdate(Update):
    """What was seen of one widget: `doc` counts, `spec` says which it is."""

    kind = "WidgetUpdate"
    #: The file; all processes of this example are told the same.
    path: ClassVar[str] = "widgets.sqlite"

    def merge(self, other: WidgetUpdate) -> None:
        for name, count in other.doc.items():
            self.doc[name] = self.doc.get(name, 0) + count

    def execute(self) -> None:
        with opened(self.path) as connection:
            write(connection, self.execution_id, self.spec, self.doc)


def write(connection: sqlite3.Connection, execution_id: Any, spec: Any, doc: Any) -> None:
    """Add the counts, once for each execution."""
    connection.execute("begin immediate")
    with connection:
        known = connection.execute("select 1 from execution where id = ?", (execution_id,))
        if known.fetchone() is None:
            connection.execute("insert into execution values (?)", (execution_id,))
            connection.execute(_ADD, {"impressions": 0, "clicks": 0, **spec, **doc})


def totals(database: str) -> tuple[int, int, int]:
    """How many widgets, impressions and clicks the database has."""
    with opened(database) as connection:
        words = "select count(*), total(impressions), total(clicks) from widget"
        widgets, impressions, clicks = connection.execute(words).fetchone()
    return widgets, int(impressions), int(clicks)


def events(count: int, widgets: int, seed: int, clicks_only: bool = False) -> Iterator[Event]:
    """What would come from somewhere else: one event after the other."""
    chance = random.Random(seed)
    for _ in range(count):
        seen = "clicks" if clicks_only or chance.random() < 0.1 else "impressions"
        target = chance.randrange(widgets)
        yield {"parent_post_id": target // 10, "target_post_id": target, "event_type": seen}


def update_of(process: Process, event: Event, **options: Any) -> WidgetUpdate:
    """An event as an update."""
    spec = {name: event[name] for name in ("parent_post_id", "target_post_id")}
    return WidgetUpdate(
        process,
        f"{spec['parent_post_id']}.{spec['target_post_id']}",
        collection=WidgetUpdate,
        spec=spec,
        doc={event["event_type"]: 1},
        **options,
    )


def count(process: Process, stream: Iterator[Event], *, entries: int, init_cache: bool) -> int:
    """Take all events; how many there were."""
    cache = LruCache[WidgetUpdate](max_entries=entries)
    taken = 0
    for event in stream:
        update = update_of(process, event, init_cache=init_cache)
        cache.set(update.resource_id, update)
        taken += 1
    cache.expire_all()
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("count", "report"))
    parser.add_argument("--database", default="widgets.sqlite", metavar="FILE")
    parser.add_argument("--events", type=int, default=10_000, metavar="N")
    parser.add_argument("--widgets", type=int, default=100, metavar="N")
    parser.add_argument("--entries", type=int, default=1_000, metavar="N", help="of the cache")
    parser.add_argument("--seed", type=int, default=None, metavar="N")
    parser.add_argument("--clicks", action="store_true", help="clicks only")
    parser.add_argument("--safe", action="store_true", help="keep what was taken in the tree")
    options = parser.parse_args(arguments)
    if options.what == "report":
        widgets, impressions, clicks = totals(options.database)
        print(f"{widgets} widgets: {impressions} impressions, {clicks} clicks")
        return 0
    WidgetUpdate.path = options.database
    stream = events(options.events, options.widgets, options.seed or 0, options.clicks)
    with Process() as process:
        taken = count(process, stream, entries=options.entries, init_cache=options.safe)
    print(f"{taken} events taken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
