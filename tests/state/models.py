"""Models that tests use."""

from __future__ import annotations

from typing import Any

from moat_kv.state import StateModel, attribute, between


class User(StateModel):
    """With getters and setters, as in the reference."""

    def __init__(self, name: str, email: str, *, _id: str | None = None) -> None:
        super().__init__(_id)
        self.name = name
        self.email = email

    @property
    def name(self) -> str:
        return self.__name

    @name.setter
    def name(self, name: str) -> None:
        if not name:
            raise ValueError("a user has a name")
        self.__name = name

    @property
    def email(self) -> str:
        return self.__email

    @email.setter
    def email(self, email: str) -> None:
        self.__email = email

    def serialize(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "email": self.email}

    def deserialize(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)


class Counter(StateModel):
    """The least."""

    n: int = 0
    log: list[int] = attribute(factory=list)


class Device(StateModel):
    """One of several."""

    id: str
    power: float = attribute(default=1.0, check=between(0, 10), doc="in watts")
