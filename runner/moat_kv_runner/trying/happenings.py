"""What is told of a trial as it happens. Pure values; `text` makes a line of each, for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moat_kv import codec
from moat_kv.path import Path
from moat_kv_runner import messages


@dataclass(frozen=True, kw_only=True)
class Got:
    """The script has taken a message from `_info`; None: the queue had stalled."""

    message: Any


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """The script has written an entry."""

    path: Path
    value: Any


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """The script has deleted an entry, or (`tree`) all at and below it."""

    path: Path
    tree: bool = False


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The script has broadcast a message."""

    topic: Path
    value: Any


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The script has recorded an error."""

    path: Path
    message: str


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The script has said that an error is over."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class WorksWell:
    """The script has said that it is set up."""


Happening = Got | Wrote | Deleted | Sent | Recorded | Resolved | WorksWell


def words(happening: Happening) -> tuple[str, str, Any]:
    """A happening as a word, a place or name, and a value; NotGiven's place is the word ""."""
    match happening:
        case Got(message=message):
            return ("got", *_of_message(message))
        case Wrote(path=path, value=value):
            return "set", str(path), value
        case Deleted(path=path, tree=tree):
            return "deleted", f"{path} and all below" if tree else str(path), None
        case Sent(topic=topic, value=value):
            return "sent", str(topic), value
        case Recorded(path=path, message=message):
            return "error", str(path), message
        case Resolved(path=path):
            return "resolved", str(path), None
        case _:
            return "works", "setup_done", None


def _of_message(message: Any) -> tuple[str, Any]:
    name = type(message).__name__
    match message:
        case None:
            return "None: the queue was full", None
        case messages.ChangeMsg():
            if "value" in message:
                return f"{name} {message.path}", message.value
            return f"{name} {message.path}  (deleted)", None
        case messages.MQTTmsg():
            return f"{name} {message.topic}", getattr(message.msg, "value", None) or getattr(
                message.msg, "raw", None
            )
        case messages.TimerMsg():
            return name, None
        case messages.ActorState(msg=messages.GroupSeen(members=members)):
            return name, list(members)
        case messages.ActorState(msg=msg):
            return name, msg
        case _:
            return name, codec.AttrDict()


__all__ = [
    "Deleted",
    "Got",
    "Happening",
    "Recorded",
    "Resolved",
    "Sent",
    "WorksWell",
    "Wrote",
    "words",
]
