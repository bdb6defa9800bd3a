"""Models in one process, without a server: load, checkout, commit."""

from __future__ import annotations

import json
import logging
import threading

import anyio
import pytest

from moat_kv.state import (
    ModelNotFound,
    Models,
    StaleModel,
    State,
    StateModel,
    UninitializedStateError,
    settle,
)
from tests.state.models import Counter, Device, User


def load_user() -> User:
    with State() as state:
        return state.load(User("chris", "chris@email.com"))


def test_a_checked_out_copy_changes_nothing_until_it_is_committed() -> None:
    load_user()
    with State(User) as state:
        user = state.checkout(User)
        user.name = "cS"
        assert state.checkout(User).name == "chris"
        state.commit(user)
        assert state.checkout(User).name == "cS"


def test_what_is_committed_or_loaded_is_a_copy() -> None:
    counter = Counter()
    with State() as state:
        state.load(counter)
    counter.log.append(1)
    with State(Counter) as state:
        copy = state.checkout(Counter)
        assert copy.log == []
        state.commit(copy)
        copy.log.append(2)
        assert state.checkout(Counter).log == []


def test_a_model_that_was_not_loaded_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="User was not loaded"):
        State(User)
    with State() as state:
        with pytest.raises(ModelNotFound):
            state.checkout(User)
        with pytest.raises(ModelNotFound):
            state.commit(User("a", "b"))
        with pytest.raises(ModelNotFound):
            state.subscribe(User, print)


def test_what_is_no_model_is_refused_by_name() -> None:
    with State() as state:
        state.load(Counter())
        with pytest.raises(TypeError, match="derives from StateModel, not 'x'"):
            state.load("x")  # type: ignore[type-var]
        with pytest.raises(TypeError, match="derives from StateModel, not None"):
            state.commit(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"its class or CLASS.instance\(id\), not Counter"):
            state.checkout(state.checkout(Counter))  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="something to call, not 5"):
            state.subscribe(Counter, 5)  # type: ignore[arg-type]
        with pytest.raises(AttributeError, match="nn"):
            state.subscribe(Counter, print, attribute=("n", "nn"))
    with pytest.raises(TypeError, match="not 'Counter'"):
        State("Counter")  # type: ignore[arg-type]


def test_a_model_that_cannot_be_serialized_is_not_loaded() -> None:
    user = User("a", "b")
    del user.__dict__["_User__email"]
    with State() as state:
        with pytest.raises(UninitializedStateError, match="AttributeError"):
            state.load(user)


def test_a_commit_of_an_older_copy_is_refused_with_both_versions() -> None:
    load_user()
    with State(User) as state:
        old = state.checkout(User)
    old.email = "mike@gmail.com"
    with State(User) as state:
        user = state.checkout(User)
        user.email = "new@gmail.com"
        state.commit(user)
    with State(User) as state, pytest.raises(StaleModel):
        state.commit(old)
    with pytest.raises(StaleModel) as caught:
        State().commit(old)
    committed, present = caught.value.committed, caught.value.present
    assert isinstance(committed, User)
    assert isinstance(present, User)
    assert (committed.email, present.email) == ("mike@gmail.com", "new@gmail.com")
    assert (caught.value.base, caught.value.have) == (1, 2)
    present.email = "merged"
    State().commit(present)
    assert State().checkout(User).email == "merged"


def test_a_forced_commit_of_an_older_copy_goes_through() -> None:
    load_user()
    old = State().checkout(User)
    State().commit(State().checkout(User))
    State().commit(old, force=True)


def test_a_copy_can_be_committed_again_and_again() -> None:
    with State() as state:
        state.load(Counter())
    counter = State().checkout(Counter)
    for _ in range(3):
        counter.n += 1
        State().commit(counter)
    assert State().checkout(Counter).n == 3


def test_a_model_that_was_never_checked_out_is_stale_but_inside_its_lock() -> None:
    load_user()
    with pytest.raises(StaleModel):
        State().commit(User("other", "x"))
    with State(User) as state:
        state.commit(User("other", "x"))
    assert State().checkout(User).name == "other"


def test_what_setters_refuse_does_not_become_the_state() -> None:
    load_user()
    with State(User) as state:
        user = state.checkout(User)
        with pytest.raises(ValueError, match="has a name"):
            user.name = ""


class Picky(Counter):
    def preconditions(self) -> None:
        super().preconditions()
        if self.n > 2:
            raise ValueError("too many")


def test_a_commit_passes_the_models_own_preconditions() -> None:
    with State() as state:
        state.load(Picky())
        with pytest.raises(ValueError, match="too many"):
            state.load(Picky(n=3))
    with State(Picky) as state:
        picky = state.checkout(Picky)
        picky.n = 3
        with pytest.raises(ValueError, match="too many"):
            state.commit(picky)
        assert state.checkout(Picky).n == 0
        picky.n = 2
        state.commit(picky)


def test_several_models_of_a_class_are_told_apart_by_id() -> None:
    with State() as state:
        state.load(Device("a"))
        assert state.checkout(Device).id == "a"
        state.load(Device("b", power=2.0))
        with pytest.raises(ModelNotFound, match="there are several"):
            state.checkout(Device)
        with pytest.raises(ModelNotFound, match=r"Device\['c'\]"):
            state.checkout(Device, "c")
        with pytest.raises(ModelNotFound):
            state.commit(Device("c"))
    with State(Device.instance("b"), Device.instance("a")) as state:
        device = state.checkout(Device, "b")
        device.power = 3.0
        state.commit(device)
        assert state.checkout(Device.instance("b")).power == 3.0
        assert state.checkout(Device.instance("a")).power == 1.0


def test_a_model_with_getters_can_be_one_of_several() -> None:
    with State() as state:
        state.load(User("a", "x", _id="u1"))
        state.load(User("b", "x", _id="u2"))
        assert state.checkout(User, "u2").name == "b"


def test_loading_again_keeps_subscribers_and_makes_copies_stale() -> None:
    seen: list[str] = []
    load_user()
    with State() as state:
        state.subscribe(User, lambda user: seen.append(user.name))
        old = state.checkout(User)
        state.load(User("dora", "x"))
        with pytest.raises(StaleModel):
            state.commit(old)
    assert settle(30)
    assert seen == ["dora"]


def test_reset_forgets_all_models() -> None:
    load_user()
    State().reset()
    with pytest.raises(ModelNotFound):
        State(User)


def test_registries_do_not_know_of_each_other() -> None:
    load_user()
    other = Models()
    with pytest.raises(ModelNotFound):
        State(User, within=other)
    with State(within=other) as state:
        state.load(User("x", "y"))
    assert State().checkout(User).name == "chris"


def test_a_model_as_text_is_its_json(caplog: pytest.LogCaptureFixture) -> None:
    load_user()
    user = State().checkout(User)
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("User: %s", user)
    assert json.loads(str(user)) == user.serialize()
    lines = caplog.messages[-1].splitlines()
    assert lines[0] == "User: "
    assert lines[1] == "{"
    assert lines[3] == '   "name": "chris",'
    assert repr(user).startswith("User(id=")


def test_models_are_equal_by_id() -> None:
    user = load_user()
    copy = State().checkout(User)
    assert copy == user
    assert hash(copy) == hash(user)
    assert user != User("chris", "chris@email.com")
    assert user != "chris"


class Half(StateModel):
    def serialize(self) -> dict[str, object]:
        return {"id": self.id}


class Nothing(StateModel):
    pass


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(Half, "both belong"), (Nothing, "nothing to keep")],
    ids=["half a serialization", "no attributes"],
)
def test_a_class_that_cannot_be_kept_is_refused(cls: type[StateModel], reason: str) -> None:
    with pytest.raises(TypeError, match=reason):
        cls()


def test_a_model_takes_an_id_at_most() -> None:
    class Plain(User):
        def __init__(self) -> None:
            super(User, self).__init__("a", "b")

    with pytest.raises(TypeError, match="takes an id at most"):
        Plain()


# In event loops -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_same_in_an_event_loop() -> None:
    async with State() as state:
        user = await state.load(User("chris", "x"))
        assert user.name == "chris"
    async with State(User) as state:
        user = state.checkout(User)
        user.name = "dora"
        await state.commit(user)
    with State(User) as plain:
        assert plain.checkout(User).name == "dora"


@pytest.mark.anyio
async def test_tasks_and_threads_count_exactly() -> None:
    async with State() as state:
        await state.load(Counter())

    async def in_task() -> None:
        for _ in range(200):
            async with State(Counter) as state:
                counter = state.checkout(Counter)
                await anyio.lowlevel.checkpoint()
                counter.n += 1
                await state.commit(counter)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(in_task)
            tasks.start_soon(anyio.to_thread.run_sync, count, 200)
    assert State().checkout(Counter).n == 1600


def count(times: int) -> None:
    for _ in range(times):
        with State(Counter) as state:
            counter = state.checkout(Counter)
            counter.n += 1
            state.commit(counter)


def test_eight_threads_count_exactly() -> None:
    with State() as state:
        state.load(Counter())
    threads = [threading.Thread(target=count, args=(300,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert State().checkout(Counter).n == 2_400


def test_without_locks_refused_commits_that_are_made_again_count_exactly() -> None:
    with State() as state:
        state.load(Counter())

    def optimistic() -> None:
        for _ in range(500):
            while True:
                counter = State().checkout(Counter)
                counter.n += 1
                try:
                    State().commit(counter)
                    break
                except StaleModel:
                    continue

    threads = [threading.Thread(target=optimistic) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert State().checkout(Counter).n == 2000
