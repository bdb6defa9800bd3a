"""The Python blocks of myosin's page "Usage", one test for each, named after its heading.

They stand here as they do there, with these corrections:

- imported from `moat_kv.state`, not from `myosin`; `Any`, `Dict`, `State`, `logging` and `logger`,
  which the page leaves out, are there
- the folder in "Configuration" is one of the test
- what the page leaves open (`long_blocking_transaction`) is made up
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Dict  # noqa: UP035

import pytest

from moat_kv.state import StaleModel, State, StateModel

logger = logging.getLogger("usage")


class User(StateModel):
    def __init__(self, name: str, email: str) -> None:
        super().__init__()
        self.name = name
        self.email = email

    @property
    def name(self) -> str:
        return self.__name

    @name.setter
    def name(self, name: str) -> None:
        self.__name = name

    @property
    def email(self) -> str:
        return self.__email

    @email.setter
    def email(self, email: str) -> None:
        self.__email = email

    def serialize(self) -> Dict[str, Any]:  # noqa: UP006
        return {"id": self.id, "name": self.name, "email": self.email}

    def deserialize(self, **kwargs) -> None:  # type: ignore[no-untyped-def]
        for k, v in kwargs.items():
            setattr(self, k, v)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    monkeypatch.delenv("MOAT_KV_CACHE_BASE_PATH", raising=False)
    monkeypatch.setenv("MYOSIN_CACHE_BASE_PATH", str(tmp_path / "tmp" / "myosin"))
    yield tmp_path / "tmp" / "myosin"
    State().reset()


@pytest.fixture
def registered() -> User:
    with State() as state:
        return state.load(User(name="chris", email="chris@email.com"))


def long_blocking_transaction() -> str:
    time.sleep(0.01)
    return "late@email.com"


def test_basic_usage() -> None:
    user = User("chris", "chris@email.com")
    other = User("x", "y")
    other.deserialize(**user.serialize())
    assert (other.name, other.email, other.id) == ("chris", "chris@email.com", user.id)


def test_configuration(cache: pathlib.Path, registered: User) -> None:
    os.environ["MYOSIN_CACHE_BASE_PATH"] = str(cache)

    with State(User) as state:
        state.commit(state.checkout(User), cache=True)
    assert json.loads((cache / "User.json").read_text())["name"] == "chris"


def test_model_registration(cache: pathlib.Path) -> None:
    # create default state
    usr = User(name="chris", email="chris@email.com")

    # register the model into the state engine
    with State() as state:
        state.load(usr)

    with State(User) as state:
        assert state.checkout(User).name == "chris"

    # one that was cached overwrites the defaults
    State().reset()
    cache.mkdir(parents=True)
    (cache / "User.json").write_text('{"id": "u", "name": "cached", "email": "c@email.com"}')
    with State() as state:
        state.load(usr)
    assert (usr.id, usr.name) == ("u", "cached")


def test_model_accessors_of_a_consumer(registered: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with State(User) as state:
        # checkout a copy of the user state model
        user = state.checkout(User)
    # read properties from the user state model
    logging.info("Username: %s", user.name)

    assert "Username: chris" in caplog.messages


def test_model_accessors_of_a_producer(registered: User) -> None:
    with State(User) as state:
        # checkout a copy of the user state model
        user = state.checkout(User)
        # modify user state model copy
        user.name = "cS"
        # commit the modified copy
        state.commit(user)

    with State(User) as state:
        assert state.checkout(User).name == "cS"


def test_thread_safety_outside_of_the_lock(registered: User) -> None:
    # `User` lock requested on entry
    with State(User) as state:
        user = state.checkout(User)
    # `User` lock released; model may no longer be up to date
    user.email = "mike@gmail.com"
    with State(User) as state:
        # overwrite user model with local copy
        state.commit(user)

    assert State().checkout(User).email == "mike@gmail.com"

    # Where it is no longer up to date, what the page warns of is an error.
    with State(User) as state:
        user = state.checkout(User)
        other = state.checkout(User)
        state.commit(other)
    with State(User) as state, pytest.raises(StaleModel):
        state.commit(user)


def test_thread_safety(registered: User) -> None:
    with State(User) as state:
        user = state.checkout(User)
        user.email = "mike@gmail.com"
        state.commit(user)

    assert State().checkout(User).email == "mike@gmail.com"


def test_reducing_latency_inside_of_the_lock(registered: User) -> None:
    with State(User) as state:
        user = state.checkout(User)
        # `User` mutex continually held during long blocking call
        user.email = long_blocking_transaction()
        state.commit(user)

    assert State().checkout(User).email == "late@email.com"


def test_reducing_latency(registered: User) -> None:
    email = long_blocking_transaction()
    with State(User) as state:
        user = state.checkout(User)
        user.email = email
        state.commit(user)

    assert State().checkout(User).email == "late@email.com"


def test_logging(registered: User, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    with State(User) as state:
        # checkout a copy of the user state model
        user = state.checkout(User)
        # modify user state model copy
        user.name = "cS"
        logger.info("User: %s", user)

    (said,) = [each for each in caplog.messages if each.startswith("User: ")]
    assert said.startswith('User: \n{\n   "id": "')
    assert json.loads(said.removeprefix("User: "))["name"] == "cS"
