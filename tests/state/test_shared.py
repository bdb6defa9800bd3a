"""Models shared through a server, each registry standing for a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from moat_kv import P, blocking, errors
from moat_kv.state import (
    Detached,
    LockTimeout,
    Models,
    SchemaTooNew,
    StaleModel,
    State,
    StateModel,
    attach,
    settle,
)
from moat_kv.testing.server import RunningServer
from tests.state.models import Counter, Device, User
from tests.state.sharing import PLACE, bump, load, n_of, until


def test_a_commit_is_seen_by_other_processes(one: Models, other: Models) -> None:
    told: list[tuple[int, int]] = []
    mine = load(one, Counter(n=5))
    theirs = load(other, Counter(n=9))
    assert (theirs.n, theirs.id) == (5, mine.id)
    State(within=other).subscribe(
        Counter, lambda new, old: told.append((new.n, old.n if old else -1)), old=True
    )
    bump(one)
    until(lambda: n_of(other) == 6)
    assert settle(30)
    assert told == [(5, -1), (6, 5)]


def test_inside_its_lock_a_model_is_the_newest(one: Models, other: Models) -> None:
    load(one)
    load(other)
    for _ in range(20):
        bump(one)
        bump(other)
    with State(Counter, within=one) as state:
        assert state.checkout(Counter).n == 40


def test_the_entry_is_what_serialize_gave(one: Models, client: blocking.Client) -> None:
    load(one, User("chris", "x"))
    load(one, Device("d1"))
    value = client.get(PLACE + P("User")).value
    assert value["state"]["name"] == "chris"
    assert value["version"] == 1
    assert client.get(PLACE + P("Device.d1")).value.state == {"id": "d1", "power": 1.0}
    schema = client.get(PLACE + P("Device:n")).value
    limits = {"minimum": 0, "maximum": 10}
    assert schema["properties"]["power"] == {
        "type": "number",
        "description": "in watts",
        **limits,
    }


def test_a_copy_of_before_is_stale(one: Models, other: Models) -> None:
    load(one)
    load(other)
    old = State(within=one).checkout(Counter)
    bump(other)
    old.n = 77
    with pytest.raises(StaleModel) as caught:
        State(within=one).commit(old)
    present = caught.value.present
    assert isinstance(present, Counter)
    assert present.n == 1
    with State(Counter, within=one) as state, pytest.raises(StaleModel):
        state.commit(old)
    State(within=one).commit(old, force=True)
    until(lambda: n_of(other) == 77)


def test_commits_without_a_lock_that_are_made_again_count_exactly(
    one: Models, other: Models
) -> None:
    load(one)
    load(other)

    def optimistic(models: Models) -> None:
        for _ in range(30):
            while True:
                counter = State(within=models).checkout(Counter)
                counter.n += 1
                try:
                    State(within=models).commit(counter)
                    break
                except StaleModel:
                    continue

    threads = [threading.Thread(target=optimistic, args=(each,)) for each in (one, other, one)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: n_of(one) == n_of(other) == 90)


def test_threads_of_two_processes_count_exactly(one: Models, other: Models) -> None:
    load(one)
    load(other)
    threads = [threading.Thread(target=bump, args=(each, 25)) for each in (one, other) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with State(Counter, within=one) as state:
        assert state.checkout(Counter).n == 100


def test_a_lock_that_another_process_holds_is_waited_for_in_vain(
    one: Models, other: Models
) -> None:
    load(one)
    load(other)
    with State(Counter, within=one):
        with pytest.raises(LockTimeout):
            with State(Counter, within=other, timeout_s=0.05):
                raise AssertionError
    bump(other)


def test_what_was_loaded_before_is_shared_as_well(served: RunningServer, one: Models) -> None:
    models = Models()
    load(models, Counter(n=3))
    load(models, Device("d"))
    told: list[int] = []
    State(within=models).subscribe(Counter, lambda counter: told.append(counter.n))
    load(one, Counter(n=4))
    with attach(served.url, within=models):
        assert n_of(models) == 4
        bump(models)
    bump(models)  # alone again
    assert settle(30)
    assert n_of(models) == 6
    until(lambda: n_of(one) == 5)
    assert told == [4, 5, 6]


def test_only_named_classes_are_shared(served: RunningServer, client: blocking.Client) -> None:
    models = Models()
    with attach(served.url, [Device], within=models):
        load(models)
        load(models, Device("d"))
        bump(models)
        assert "value" not in client.get(PLACE + P("Counter"))
        assert "value" in client.get(PLACE + P("Device.d"))


def test_a_blocking_client_can_be_attached(client: blocking.Client, one: Models) -> None:
    models = Models()
    load(one)
    attachment = attach(client, within=models)
    load(models)
    bump(models)
    attachment.detach()
    attachment.detach()
    until(lambda: n_of(one) == 1)


class Restored(Counter):
    model_name = "Counter"


def test_two_classes_of_one_name_are_not_shared(one: Models) -> None:
    load(one)
    with pytest.raises(errors.NameTaken):
        load(one, Restored())


def test_loading_twice_is_no_conflict(one: Models) -> None:
    load(one)
    bump(one)
    assert load(one).n == 1


def test_after_a_crash_the_last_state_is_restored(served: RunningServer) -> None:
    for expected in (0, 1, 2):
        models, told = Models(), list[int]()
        with attach(served.url, within=models):
            load(models)
            State(within=models).subscribe(Counter, lambda counter, to=told: to.append(counter.n))
            assert n_of(models) == expected
            assert settle(30)
            assert told == ([expected] if expected else [])
            bump(models)


def test_a_registry_that_was_reset_leaves_the_entry(
    one: Models, other: Models, client: blocking.Client
) -> None:
    load(one)
    load(other)
    State(within=one).reset()
    bump(other)
    assert client.get(PLACE + P("Counter")).value.state.n == 1
    assert load(one).n == 1
    bump(one)
    until(lambda: n_of(other) == 2)


def test_an_entry_that_was_deleted_is_made_again(
    one: Models, client: blocking.Client, caplog: pytest.LogCaptureFixture
) -> None:
    load(one)
    bump(one)
    client.delete(PLACE + P("Counter"))
    until(lambda: "is gone" in caplog.text)
    bump(one)
    bump(one)
    assert client.get(PLACE + P("Counter")).value.state.n == 3
    client.delete(PLACE + P("Counter"))
    with State(Counter, within=one) as state:
        state.commit(state.checkout(Counter))


def test_a_state_that_cannot_be_taken_leaves_what_is_there(
    one: Models, client: blocking.Client, caplog: pytest.LogCaptureFixture
) -> None:
    load(one)
    bump(one)
    path = PLACE + P("Counter")
    good = client.get(path).value
    client.set(path, {**good, "state": {"n": "x"}, "by": "hand"})
    until(lambda: "cannot be taken" in caplog.text)
    assert n_of(one) == 1
    with pytest.raises(errors.MoatKvError, match="is not int"):
        bump(one)
    client.set(path, {**good, "version": 2, "by": "later"})
    with pytest.raises(SchemaTooNew):
        bump(one)
    client.set(path, 3)
    with pytest.raises(errors.BadValue):
        bump(one)
    client.set(path, {**good, "by": "mended"})
    bump(one)
    assert n_of(one) == 2


class Kelvin(StateModel):
    model_name = "Counter"
    schema_version = 2
    kelvin: int = 0

    @classmethod
    def migrate(cls, state: dict[str, Any], version: int) -> dict[str, Any]:
        return {"id": state["id"], "kelvin": state["n"] + 273}


def test_an_older_state_in_the_tree_is_migrated(
    one: Models, other: Models, client: blocking.Client
) -> None:
    load(one, Counter(n=7))
    assert load(other, Kelvin()).kelvin == 280
    with State(Kelvin, within=other) as state:
        state.commit(state.checkout(Kelvin))
    assert client.get(PLACE + P("Counter")).value.version == 2


class Heated(StateModel):
    n: int = 0

    def apply(self, old: Heated) -> None:
        WORLD.append((old.n, self.n))
        if self.n == 13:
            raise ValueError("no")
        if RACE:
            RACE.pop()()


WORLD: list[tuple[int, int]] = []
RACE: list[Callable[[], None]] = []


def test_if_the_set_fails_after_apply_the_winner_is_applied_again(
    one: Models, other: Models
) -> None:
    WORLD.clear()
    load(one, Heated())
    load(other, Heated())

    def quicker() -> None:
        State(within=other).commit(theirs)

    mine, theirs = (State(within=each).checkout(Heated) for each in (one, other))
    mine.n, theirs.n = 1, 2
    RACE.append(quicker)
    with pytest.raises(StaleModel):
        State(within=one).commit(mine)
    assert WORLD == [(0, 1), (0, 2), (1, 2)]
    with State(Heated, within=one) as state:
        mine = state.checkout(Heated)
        mine.n = 13
        with pytest.raises(ValueError, match="no"):
            state.commit(mine)
        assert state.checkout(Heated).n == 2


# Cut off ------------------------------------------------------------------------------------------


class Loose(StateModel):
    offline = True
    n: int = 0


def test_a_class_that_is_offline_commits_plainly(one: Models, other: Models) -> None:
    load(one, Loose())
    load(other, Loose())
    copies = [State(within=each).checkout(Loose) for each in (one, other)]
    for number, (models, copy) in enumerate(zip((one, other), copies, strict=True), 1):
        copy.n = number
        State(within=models).commit(copy)
    until(lambda: State(within=one).checkout(Loose).n == 2)
    with State(Loose, within=one) as state, State(Loose, within=other, timeout_s=1):
        state.commit(state.checkout(Loose))


def test_without_a_client_that_lives_a_commit_is_detached(served: RunningServer) -> None:
    models = Models()
    with blocking.open_client(served.url) as client:
        attachment = attach(client, within=models)
        load(models)
        load(models, Loose())
    with pytest.raises(Detached):
        bump(models)
    with pytest.raises(Detached):
        State(within=models).commit(State(within=models).checkout(Counter))
    assert n_of(models) == 0
    with pytest.raises(Detached):
        attachment.detach()
