"""Updates and their cache from plain threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import anyio.from_thread
import pytest

from moat_kv import blocking, coord
from moat_kv.coord import unsettled
from moat_kv.testing.server import RunningServer, running_server
from tests.coord import widgets
from tests.coord.widgets import PlainClicks


@pytest.fixture(params=["asyncio", "trio"])
def both(
    served: RunningServer, request: pytest.FixtureRequest
) -> Iterator[tuple[coord.Process, coord.Process]]:
    with (
        coord.Process(served.url, backend=request.param) as one,
        coord.Process(served.url, backend=request.param) as other,
    ):
        yield one, other


Both = tuple[coord.Process, coord.Process]


def test_the_last_thread_to_end_executes_what_all_have_merged(both: Both) -> None:
    def work(process: coord.Process) -> None:
        cache = coord.LruCache[PlainClicks](max_entries=2)
        for number in range(18):
            cache.set(number % 3, PlainClicks(process, number % 3, doc={"clicks": 1}))
        cache.expire_all()

    threads = [threading.Thread(target=work, args=(process,)) for process in (*both, *both)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(doc["clicks"] for _, doc, _ in widgets.DONE) == 72


def test_threads_share_a_cache(both: Both) -> None:
    one, _ = both
    cache = coord.LruCache[PlainClicks](max_entries=2, background=True)

    def work() -> None:
        for number in range(18):
            cache.set(number % 3, PlainClicks(one, number % 3, doc={"clicks": 1}))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.expire_all()
    cache.flush()
    cache.flush()
    assert sum(doc["clicks"] for _, doc, _ in widgets.DONE) == 72


def test_an_update_refers_to_its_resource_from_the_first(both: Both) -> None:
    one, other = both
    mine = PlainClicks(one, "w", doc={"clicks": 1}, init_cache=True)
    theirs = PlainClicks(other, "w", doc={"clicks": 2})
    again = PlainClicks(one, "w", doc={"clicks": 4})
    assert mine.resource_id == "test.test.w"
    mine.refresh(again)
    with pytest.raises(RuntimeError, match="is over"):
        again.refresh(mine)
    theirs.cache()
    assert not theirs.end_session()
    assert mine.end_session(block=False)
    assert [doc for _, doc, _ in widgets.DONE] == [{"clicks": 7}]


def test_a_cache_answers_as_the_reference_says(both: Both) -> None:
    one, _ = both
    cache = coord.LruCache[PlainClicks]()
    assert cache.set("w", PlainClicks(one, "w", doc={"clicks": 1})) is True
    assert cache.set("w", PlainClicks(one, "w", doc={"clicks": 1})) is False
    update = cache.get("w")
    assert update is not None
    update.force_expiry()
    assert cache.set("w", PlainClicks(one, "w", doc={"clicks": 1})) is None
    assert widgets.total() == 3
    cache.set("x", PlainClicks(one, "x", doc={"clicks": 1}, hard_session=0))
    cache.purge()
    assert widgets.total("x") == 1
    cache.set("y", PlainClicks(one, "y", doc={"clicks": 1}, hard_session=0))
    assert cache.get("y") is None
    cache.set("z", PlainClicks(one, "z", doc={"clicks": 1}))
    cache.expire("z")
    cache.set("z", PlainClicks(one, "z", doc={"clicks": 1}))
    cache.expire_oldest()
    assert widgets.total("z") == 2
    with pytest.raises(KeyError):
        cache.get("z")


def test_what_execute_fails_on_is_tried_again_in_a_thread(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsettled, "FIRST_S", 0.02)
    widgets.FAIL["w"] = 2
    cache = coord.LruCache[PlainClicks]()
    update = PlainClicks(both[0], "w", doc={"clicks": 1})
    cache.set("w", update)
    cache.expire_all()
    assert cache.get_last_failed() is update
    until_s = time.monotonic() + 30
    while widgets.total() == 0 and time.monotonic() < until_s:
        time.sleep(0.01)
    assert widgets.total() == 1


class Free(coord.ConflictFreeUpdate):
    """All types that are merged by themselves."""

    note = "x"

    def state(self) -> dict[str, Any]:
        return {"seen": getattr(self, "seen", 1)}

    def execute(self) -> None:
        widgets.DONE.append((self._id, {**self.doc, **self.state()}, str(self.execution_id)))


def test_conflict_free_updates_need_no_merge(both: Both) -> None:
    one, other = both
    mine = Free(one, "w", doc={"n": 1, "l": [1], "m": {"a": 1, "b": "x"}, "t": True})
    theirs = Free(other, "w", doc={"n": 2.5, "l": [2], "m": {"a": 2, "c": 1}, "t": False})
    assert not mine.end_session()
    assert theirs.end_session()
    ((_, doc, _),) = widgets.DONE
    assert doc == {"n": 3.5, "l": [2, 1], "m": {"a": 3, "b": "x", "c": 1}, "t": True, "seen": 2}


def test_async_methods_are_refused_in_a_thread(both: Both) -> None:
    class Wrong(PlainClicks):
        async def execute(self) -> None:  # type: ignore[override]
            raise AssertionError("called")

    with pytest.raises(TypeError, match="must be a plain function"):
        Wrong(both[0], "w").end_session()


def test_a_process_whose_client_was_closed_ends_its_thread(served: RunningServer) -> None:
    with blocking.open_client(served.url) as client:
        process = coord.Process(client)
        assert PlainClicks(process, "w", doc={"clicks": 1}).end_session()
        keeper = process._keeper
        assert keeper is not None
    keeper.join(30)
    assert not keeper.is_alive()
    process.stop()


def test_a_process_stops_though_its_server_is_away(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moat_kv.coord.aio.process.STOP_S", 0.2)
    monkeypatch.setattr(unsettled, "FIRST_S", 0.01)
    with anyio.from_thread.start_blocking_portal() as portal:
        serving = running_server(socket=tmp_path / "s")
        with portal.wrap_async_context_manager(serving) as running:
            process = coord.Process(running.url)
            widgets.FAIL["w"] = 1
            with pytest.raises(OSError, match="away"):
                PlainClicks(process, "w", doc={"clicks": 1}).end_session()
        process.stop()
    assert widgets.total() == 0 or widgets.FAIL["w"] == 0
