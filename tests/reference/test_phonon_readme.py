"""The blocks of phonon's page, with our import names, one test for each, named after its heading.

Corrected are:

- the syntax of Python 2 (`except X, e`), and arguments that Python does not have (`doc=**mapping`);
- placeholders: the bodies that are comments, `get_email` and its like, `logger`, `user_updates`;
- `Update`s are given a process and an id wherever the page leaves one of them out;
- `self.doc += v`, which adds a number to a mapping, is `self.doc[k] += v`;
- Django's models and `F` expressions are sqlite3 tables and `set x = x + ?`.

Each test first has the page's code, then says what has come of it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any, ClassVar

import pytest

from moat_kv import config
from moat_kv.testing.server import RunningServer
from tests.coord.conftest import served as served  # the fixture

logger = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def default_server(served: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Process()` finds it."""
    monkeypatch.setenv(config.URL_VARIABLE, served.url)


@pytest.fixture
def database(tmp_path: FilePath) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "db.sqlite", check_same_thread=False)
    for table in ("widget", "user", "foo"):
        connection.execute(
            f"create table {table} (parent_post_id integer, target_post_id integer,"
            " impressions integer default 0, clicks integer default 0,"
            " unique (parent_post_id, target_post_id))"
        )
    yield connection
    connection.close()


def rows(connection: sqlite3.Connection, table: str = "widget") -> list[tuple[int, ...]]:
    return connection.execute(f"select * from {table} order by 1, 2").fetchall()


def test_references() -> None:
    from moat_kv.coord import Process

    record: dict[str, str] = {}
    written: list[dict[str, str]] = []

    def get_email(_record: str) -> str:
        return "me@example.org"

    def get_address(_record: str) -> str:
        return "1 Main Street"

    def update_record_with_email(_record: str, email: str) -> None:
        record["email"] = email

    def update_record_with_address(_record: str, address: str) -> None:
        record["address"] = address

    def write_record_to_database(_record: str) -> None:
        written.append(dict(record))

    p1 = Process()
    address_lookup_service = p1.create_reference(resource="me")
    p2 = Process()
    email_verification_service = p2.create_reference(resource="me")

    def lookup_email_and_apply_to_record(record: str, reference: object) -> None:
        email = get_email(record)
        try:
            with email_verification_service.lock():
                update_record_with_email(record, email)
                if email_verification_service.count() == 1:
                    write_record_to_database(record)
        except Process.AlreadyLocked:
            # Unable to acquire lock. Handle as needed.
            pass

    def verify_address_and_apply_to_record(record: str, reference: object) -> None:
        address = get_address(record)
        try:
            with address_lookup_service.lock():
                update_record_with_address(record, address)
                if address_lookup_service.count() == 1:
                    write_record_to_database(record)
        except Process.AlreadyLocked:
            # Unable to acquire lock. Handle as needed.
            pass

    t1 = threading.Thread(
        target=lookup_email_and_apply_to_record, args=("me", email_verification_service)
    )
    t2 = threading.Thread(
        target=verify_address_and_apply_to_record, args=("me", address_lookup_service)
    )
    t1.start()
    t2.start()
    t1.join()
    t2.join()

    assert record == {"email": "me@example.org", "address": "1 Main Street"}
    # Neither has let go of it yet, so neither was the last.
    assert written == []
    assert not address_lookup_service.dereference()
    with email_verification_service.lock():
        if email_verification_service.count() == 1:
            write_record_to_database("me")
    assert written == [record]

    p1.stop()
    p2.stop()


def test_updates() -> None:
    from moat_kv.coord import LruCache, Process, Update

    executed: list[tuple[str, dict[str, int]]] = []
    user_updates = [{"user_id": f"u{n % 3}", "pages": n} for n in range(9)]

    class UserUpdate(Update):
        def state(self) -> dict[str, Any]:
            return {}

        def clear(self) -> None:
            pass

        def merge(self, other: Any) -> None:
            self.doc["pages"] += other.doc["pages"]

        def execute(self) -> None:
            executed.append((self._id, dict(self.doc)))

    # Calls end_session upon removing from cache.
    # Also finds collisions and calls merge instead of overwriting on set
    lru_cache = LruCache[UserUpdate](max_entries=10000)

    p = Process()
    for user_update in user_updates:
        user_id = str(user_update["user_id"])
        doc: dict[str, Any] = {"pages": user_update["pages"]}
        lru_cache.set(user_id, UserUpdate(process=p, _id=user_id, doc=doc))

    lru_cache.expire_all()
    p.stop()

    assert executed == [("u0", {"pages": 9}), ("u1", {"pages": 12}), ("u2", {"pages": 15})]


def test_updates_widget_model(database: sqlite3.Connection) -> None:
    class Widget:
        parent_post_id: int
        target_post_id: int
        impressions: int
        clicks: int

    names = [each[1] for each in database.execute("pragma table_info(widget)")]
    assert names == list(Widget.__annotations__)


def test_updates_documents() -> None:
    document = {"parent_post_id": int, "target_post_id": int, "event_type": str}

    some_update = {"parent_post_id": 12345, "target_post_id": 67890, "event_type": "impressions"}
    assert {name: type(value) for name, value in some_update.items()} == document


def test_updates_subclass() -> None:
    from moat_kv.coord import Update

    class WidgetUpdate(Update):
        pass

    assert WidgetUpdate.kind.endswith("WidgetUpdate")


def test_updates_instance() -> None:
    from moat_kv.coord import Process, Update

    class WidgetUpdate(Update):
        pass

    p = Process()

    # Here's the update doc...
    some_update: dict[str, Any] = {
        "parent_post_id": 12345,
        "target_post_id": 67890,
        "event_type": "impressions",
    }

    # Less typing to set variables...
    pp_id = some_update.get("parent_post_id")
    tp_id = some_update.get("target_post_id")
    evt = some_update.get("event_type")

    # Now we can actually create a widget update with appropriate vars
    myupdate = WidgetUpdate(
        p,
        _id=f"{pp_id}.{tp_id}",
        spec={"parent_post_id": pp_id, "target_post_id": tp_id},
        doc={str(evt): 1},
    )

    assert myupdate.resource_id == "test.test.12345.67890"
    assert myupdate.spec == {"parent_post_id": 12345, "target_post_id": 67890}
    assert myupdate.doc == {"impressions": 1}
    p.stop()


def test_state_attribute() -> None:
    from moat_kv.coord import Process, Update

    p = Process()
    myupdate = Update(p, 1)

    myupdate.foo = 1  # type: ignore[attr-defined]

    assert myupdate.state() == {}  # it has to be said
    p.stop()


def test_state() -> None:
    from moat_kv.coord import Process, Update

    class MyUpdate(Update):
        foo: int

        def state(self) -> dict[str, Any]:
            return {"foo": self.foo}

    p = Process()
    myupdate = MyUpdate(p, 1)
    myupdate.foo = 1
    myupdate.cache()
    assert myupdate._sibling(myupdate._state()).foo == 1
    p.stop()


def test_clear() -> None:
    from moat_kv.coord import Process, Update

    class MyUpdate(Update):
        foo: int

        def clear(self) -> None:
            self.foo = 0

    p = Process()
    myupdate = MyUpdate(p, 1, doc={"clicks": 1})
    myupdate.foo = 1
    myupdate.clear()
    assert myupdate.foo == 0
    p.stop()


def test_merge() -> None:
    from moat_kv.coord import Process, Update

    class WidgetUpdate(Update):
        def merge(self, other: Any) -> None:
            for k, v in other.doc.items():
                if k in self.doc:
                    self.doc[k] += v
                else:
                    self.doc[k] = v

    p = Process()
    myupdate = WidgetUpdate(p, 1, doc={"clicks": 1})
    myupdate.refresh(WidgetUpdate(p, 1, doc={"clicks": 2, "impressions": 3}))
    assert myupdate.doc == {"clicks": 3, "impressions": 3}
    p.stop()


def test_merge_with_state() -> None:
    from moat_kv.coord import Process, Update

    class MyUpdate(Update):
        foo = 1

        def state(self) -> dict[str, Any]:
            return {"foo": self.foo}

        def merge(self, other: Any) -> None:
            for k, v in other.doc.items():
                if k in self.doc:
                    self.doc[k] += v
                else:
                    self.doc[k] = v
            self.foo += other.foo

        def execute(self) -> None:
            executed.append((dict(self.doc), self.foo))

    executed: list[tuple[dict[str, int], int]] = []
    p1, p2 = Process(), Process()
    mine, theirs = MyUpdate(p1, 1, doc={"clicks": 1}), MyUpdate(p2, 1, doc={"clicks": 2})
    assert not theirs.end_session()
    assert mine.end_session()
    assert executed == [({"clicks": 3}, 2)]
    p1.stop()
    p2.stop()


def test_execute(database: sqlite3.Connection) -> None:
    from moat_kv.coord import LruCache, Process, Update

    class WidgetUpdate(Update):
        def merge(self, other: Any) -> None:
            for k, v in other.doc.items():
                if k in self.doc:
                    self.doc[k] += v
                else:
                    self.doc[k] = v

        def execute(self) -> None:
            try:
                with database:
                    key = (self.spec["parent_post_id"], self.spec["target_post_id"])
                    database.execute(
                        "insert or ignore into widget (parent_post_id, target_post_id)"
                        " values (?, ?)",
                        key,
                    )
                    for k, v in self.doc.items():
                        database.execute(
                            f"update widget set {k} = {k} + ?"
                            " where parent_post_id = ? and target_post_id = ?",
                            (v, *key),
                        )
            except sqlite3.DatabaseError as e:
                logger.error("Error updating widget: %s", e)

    p = Process()
    lru_cache = LruCache[WidgetUpdate](max_entries=10000)
    for number in range(6):
        spec = {"parent_post_id": 1, "target_post_id": number % 2}
        doc = {("clicks", "impressions")[number % 3 == 0]: 1}
        lru_cache.set(number % 2, WidgetUpdate(p, number % 2, spec=spec, doc=doc))
    lru_cache.expire_all()
    p.stop()

    assert rows(database) == [(1, 0, 1, 2), (1, 1, 1, 2)]


def test_execute_with_a_base_class(database: sqlite3.Connection) -> None:
    from moat_kv.coord import LruCache, Process, Update

    class BaseUpdate(Update):
        Model: ClassVar[str]

        def merge(self, other: Any) -> None:
            for k, v in other.doc.items():
                if k in self.doc:
                    self.doc[k] += v
                else:
                    self.doc[k] = v

        def execute(self) -> None:
            try:
                with database:
                    key = (self.spec["parent_post_id"], self.spec["target_post_id"])
                    database.execute(
                        f"insert or ignore into {self.Model} (parent_post_id, target_post_id)"
                        " values (?, ?)",
                        key,
                    )
                    for k, v in self.doc.items():
                        database.execute(
                            f"update {self.Model} set {k} = {k} + ?"
                            " where parent_post_id = ? and target_post_id = ?",
                            (v, *key),
                        )
            except sqlite3.DatabaseError as e:
                logger.error("Error updating %s: %s", self.Model, e)

    class WidgetUpdate(BaseUpdate):
        Model = "widget"

    class UserUpdate(BaseUpdate):
        Model = "user"

    class FooUpdate(BaseUpdate):
        Model = "foo"

    p = Process()
    lru_cache = LruCache[BaseUpdate]()
    spec = {"parent_post_id": 1, "target_post_id": 2}
    for kind in (WidgetUpdate, UserUpdate, FooUpdate):
        for clicks in (1, 2):
            update = kind(p, "1.2", collection=kind, spec=spec, doc={"clicks": clicks})
            lru_cache.set((kind, "1.2"), update)
    lru_cache.expire_all()
    p.stop()

    assert [rows(database, each) for each in ("widget", "user", "foo")] == [[(1, 2, 0, 3)]] * 3
