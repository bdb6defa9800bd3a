"""Models kept as files: replaced in one step, restored, set aside when damaged."""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from moat_kv.state import (
    CacheError,
    NullCachePathError,
    SchemaTooNew,
    State,
    StateModel,
    cache_files,
    metrics,
    settle,
)
from tests.state.models import Counter, Device, User


def load_user() -> User:
    with State() as state:
        return state.load(User("chris", "chris@email.com"))


def commit(name: str, cache: bool | None = True) -> None:
    with State(User) as state:
        user = state.checkout(User)
        user.name = name
        state.commit(user, cache=cache)


def kept(folder: pathlib.Path) -> Any:
    return json.loads((folder / "User.json").read_text())


def restart() -> None:
    """The process's memory is lost, its files are not."""
    from moat_kv.state.registry import models

    models.clear()


def test_a_kept_model_is_restored(cache: pathlib.Path) -> None:
    id_ = load_user().id
    commit("cS")
    assert kept(cache) == {"id": id_, "name": "cS", "email": "chris@email.com"}
    restart()
    user = load_user()
    assert (user.name, user.id) == ("cS", id_)
    assert State().checkout(User).name == "cS"


def test_the_older_name_of_the_variable_is_honoured(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYOSIN_CACHE_BASE_PATH", str(tmp_path / "old"))
    load_user()
    commit("a")
    assert kept(tmp_path / "old")["name"] == "a"
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", str(tmp_path / "new"))
    load_user()
    commit("b")
    assert kept(tmp_path / "new")["name"] == "b"
    assert kept(tmp_path / "old")["name"] == "a"


def test_nothing_is_kept_unless_asked_for(cache: pathlib.Path) -> None:
    load_user()
    commit("a", cache=None)
    commit("b", cache=False)
    assert not cache.exists()


class Kept(Counter):
    cached = True
    cache_synced = True


def test_a_class_says_what_is_kept_by_default(cache: pathlib.Path) -> None:
    with State() as state:
        state.load(Kept())
    with State(Kept) as state:
        state.commit(Kept(n=3))
        state.commit(Kept(n=4), cache=False)
    assert json.loads((cache / "Kept.json").read_text())["n"] == 3


def test_without_a_folder_keeping_is_an_error_and_nothing_is_changed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_user()
    with pytest.raises(NullCachePathError, match="MOAT_KV_CACHE_BASE_PATH"):
        commit("a")
    assert State().checkout(User).name == "chris"
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", str(tmp_path))
    commit("b")  # known from now on
    assert kept(tmp_path)["name"] == "b"


def test_a_folder_that_goes_away_is_made_again(cache: pathlib.Path) -> None:
    load_user()
    commit("a")
    for each in cache.iterdir():
        each.unlink()
    cache.rmdir()
    commit("b")
    assert kept(cache)["name"] == "b"


@pytest.mark.parametrize("under", ["", "deeper"])
def test_a_folder_that_cannot_be_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, under: str
) -> None:
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", str(tmp_path / "file" / under))
    load_user()
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot keep"):
        commit("a")
    with pytest.raises(CacheError, match="Not a directory"):
        load_user()
    (tmp_path / "file").unlink()


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOAT_KV_CACHE_BASE_PATH", "/proc/no-such/folder")
    with State() as state:
        state.load(Counter())
        with pytest.raises(CacheError, match="cannot keep"):
            state.commit(state.checkout(Counter), cache=True)


def test_what_json_does_not_carry_is_an_error(cache: pathlib.Path) -> None:
    class Odd(Counter):
        def serialize(self) -> dict[str, Any]:
            return {"id": self.id, "n": object() if self.n else 0}

        def deserialize(self, **kwargs: Any) -> None:
            pass

    with State() as state:
        state.load(Odd())
        odd = state.checkout(Odd)
        odd.n = 1
        with pytest.raises(CacheError, match="JSON does not carry it"):
            state.commit(odd, cache=True)
    assert not cache.exists()


def test_a_name_that_is_a_folder_is_an_error(cache: pathlib.Path) -> None:
    load_user()
    (cache / "User.json.previous").mkdir(parents=True)
    with pytest.raises(CacheError):
        commit("a")
    assert State().checkout(User).name == "a"
    (cache / "User.json.previous").rmdir()


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"id": "x", "name": ""}', b'{"__schema_version__": "1"}', b"\xff"],
    ids=["cut off", "a list", "refused by a setter", "bad version", "no text"],
)
def test_a_damaged_file_is_set_aside_and_reported(
    cache: pathlib.Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(parents=True)
    (cache / "User.json").write_bytes(content)
    before = metrics.registry.get_sample_value(
        "myosin_cache_damaged_count_total", {"model": "User"}
    )
    for _ in range(2):
        with caplog.at_level(logging.ERROR):
            assert load_user().name == "chris"
        (cache / "User.json").write_bytes(content)
        restart()
    aside = list(cache.glob("User.json.damaged-*"))
    assert [each.read_bytes() for each in aside] == [content, content]
    assert "was damaged" in caplog.text
    after = metrics.registry.get_sample_value("myosin_cache_damaged_count_total", {"model": "User"})
    assert after == (before or 0) + 2


def test_the_state_before_a_damaged_one_is_restored(
    cache: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_user()
    commit("a")
    commit("b")
    (cache / "User.json").write_text("{")
    restart()
    assert load_user().name == "a"
    assert "User is restored from" in caplog.text


def test_reset_deletes_the_files(cache: pathlib.Path) -> None:
    load_user()
    commit("a")
    commit("b")
    State().reset()
    assert list(cache.iterdir()) == []
    assert load_user().name == "chris"


def test_each_of_several_has_a_file(cache: pathlib.Path) -> None:
    with State() as state:
        for id_ in ("a", "b/ö", "€"):
            state.load(Device(id_))
            state.commit(state.checkout(Device, id_), cache=True)
    names = sorted(each.name for each in cache.iterdir())
    assert names == ["Device.%u20AC.json", "Device.a.json", "Device.b%2Fö.json"]


def test_the_file_of_the_only_one_is_taken_by_the_one_of_that_id(cache: pathlib.Path) -> None:
    cache.mkdir(parents=True)
    (cache / "Device.json").write_text('{"id": "a", "power": 7}')
    with State() as state:
        assert state.load(Device("b")).power == 1.0
        assert state.load(Device("a")).power == 7
        state.commit(state.checkout(Device, "a"), cache=True)
    assert (cache / "Device.a.json").exists()


def test_subscribers_learn_of_a_recovered_state(cache: pathlib.Path) -> None:
    told: list[tuple[str, object]] = []
    load_user()
    with State() as state:
        state.subscribe(User, lambda user: told.append((user.name, "fresh")))
    assert settle(30)
    assert told == []
    commit("a")
    assert settle(30)
    told.clear()
    restart()
    load_user()
    with State() as state:
        state.subscribe(User, lambda user, old: told.append((user.name, old)), old=True)
    assert settle(30)
    assert told == [("a", None)]


def test_a_failed_write_leaves_the_old_file(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_user()
    commit("a")

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(CacheError, match="No space left"):
            commit("b")
    assert kept(cache)["name"] == "a"
    commit("c")
    assert kept(cache)["name"] == "c"


def test_a_write_in_parts_is_written_whole(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_user()
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    commit("a")
    assert kept(cache)["name"] == "a"


def test_where_files_cannot_be_exchanged_they_are_replaced(
    cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_files, "_exchange", lambda spare, live: False)
    load_user()
    commit("a")
    commit("b" * 100)
    commit("c")
    assert kept(cache)["name"] == "c"
    assert [each.name for each in cache.iterdir()] == ["User.json"]


def test_a_system_without_that_call_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCalls:
        def __init__(self, *args: object, **kwargs: object) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", NoCalls)
    assert cache_files._find_exchange()(b"a", b"b") is False


def test_another_error_of_the_exchange_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        cache_files.swap(str(tmp_path / "a" / "x"), str(tmp_path / "a" / "y"))


# Versions of the schema ---------------------------------------------------------------------------


class Version1(StateModel):
    model_name = "Versioned"
    celsius: float = 20.0


class Version2(StateModel):
    model_name = "Versioned"
    schema_version = 2
    kelvin: float = 293.0

    @classmethod
    def migrate(cls, state: dict[str, Any], version: int) -> dict[str, Any]:
        state["kelvin"] = state.pop("celsius") + 273.0
        return state


def test_an_older_state_is_migrated(cache: pathlib.Path) -> None:
    cache.mkdir(parents=True)
    (cache / "Version2.json").write_text('{"id": "x", "celsius": 21.0}')
    with State() as state:
        assert state.load(Version2()).kelvin == 294.0
        state.commit(state.checkout(Version2), cache=True)
    found = json.loads((cache / "Version2.json").read_text())
    assert found == {"id": "x", "kelvin": 294.0, "__schema_version__": 2}
    restart()
    with State() as state:
        assert state.load(Version2()).kelvin == 294.0


def test_a_newer_state_is_left_as_it_is(cache: pathlib.Path) -> None:
    cache.mkdir(parents=True)
    content = '{"id": "x", "kelvin": 1.0, "__schema_version__": 3}'
    (cache / "Version2.json").write_text(content)
    with State() as state, pytest.raises(SchemaTooNew, match="version 3, this program knows 2"):
        state.load(Version2())
    assert (cache / "Version2.json").read_text() == content


def test_an_older_state_without_a_migration_is_set_aside(cache: pathlib.Path) -> None:
    class Grown(Version1):
        schema_version = 2

    cache.mkdir(parents=True)
    (cache / "Grown.json").write_text('{"id": "x", "celsius": 21.0}')
    with State() as state:
        assert state.load(Grown()).celsius == 20.0
    assert len(list(cache.glob("Grown.json.damaged-*"))) == 1


# Death --------------------------------------------------------------------------------------------

_VICTIM = """
import sys
from moat_kv.state import State, StateModel
class Long(StateModel):
    n: int = 0
    text: str = ""
with State() as state:
    state.load(Long())
while True:
    with State(Long) as state:
        long = state.checkout(Long)
        long.n += 1
        long.text = str(long.n) * (long.n * 37 % 5000)
        state.commit(long, cache=True)
    if long.n == 20:
        print("on my way", flush=True)
"""


def test_a_process_that_is_killed_leaves_a_whole_file(cache: pathlib.Path) -> None:
    last = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _VICTIM], stdout=subprocess.PIPE, env={**os.environ}
        )
        assert process.stdout is not None
        assert process.stdout.readline() or last
        process.kill()
        process.wait()
        process.stdout.close()
        state = json.loads((cache / "Long.json").read_text())
        assert state["text"] == str(state["n"]) * (state["n"] * 37 % 5000)
        assert state["n"] >= max(last, 20)
        last = state["n"]
        (cache / "Long.json").write_text(json.dumps({**state, "n": 0, "text": ""}))
        last = 0
    assert not list(cache.glob("*.damaged*"))
