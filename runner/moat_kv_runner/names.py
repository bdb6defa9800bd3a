"""The names that a script is given, with their types: for editors and type checkers alone.

`moat kv code stubs FOLDER` makes an editor know them in a folder of scripts; a script may also name
them where only a type checker looks:

    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        from moat_kv_runner.names import _P, _self

There are no values here: importing them for real is an ImportError.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol, TypeAlias

from moat_kv import notgiven
from moat_kv.client.client import Client
from moat_kv.path import Path
from moat_kv_runner import messages
from moat_kv_runner.admin import CallAdmin
from moat_kv_runner.info_queue import InfoQueue


class _cls:
    """The classes of messages, two exceptions, and `NotGiven`."""

    # Aliases, so that scripts may derive from them.
    ActorState: TypeAlias = messages.ActorState
    CompleteState: TypeAlias = messages.CompleteState
    PartialState: TypeAlias = messages.PartialState
    DetachedState: TypeAlias = messages.DetachedState
    BrokenState: TypeAlias = messages.BrokenState
    RunnerMsg: TypeAlias = messages.RunnerMsg
    ChangeMsg: TypeAlias = messages.ChangeMsg
    MQTTmsg: TypeAlias = messages.MQTTmsg
    TimerMsg: TypeAlias = messages.TimerMsg
    ReadyMsg: TypeAlias = messages.ReadyMsg
    ErrorRecorded: TypeAlias = messages.ErrorRecorded
    LostClaim: TypeAlias = messages.LostClaim
    NotGiven = notgiven.NotGiven


class Settings(Protocol):
    """`_cfg`: read by attribute, and as a mapping."""

    runner: Any
    server: Any
    places: Any

    def __getitem__(self, key: str, /) -> Any: ...
    def __getattr__(self, name: str, /) -> Any: ...
    def keys(self) -> Any: ...


class Digits(Protocol):
    """`_digits`."""

    def __call__(self, n: float, digits: int = 6) -> float:
        """A number rounded to so many significant digits."""


class PathOf(Protocol):
    """`_P`."""

    def __call__(self, text: str, /) -> Path:
        """The path in a text: `_P("home.kitchen")`."""


#: A client whose writes count only while this job has its claim. In a script that is not async it
#: is the blocking one: `moat_kv.blocking.Client`.
_client: Client
#: The controller of this run; only async scripts have it.
_self: CallAdmin
#: The messages for this run; only async scripts have it.
_info: InfoQueue
#: The settings that are in force, read-only.
_cfg: Settings
_log: logging.Logger
_P: PathOf
#: A path from its elements: `_Path("home", 1)`.
_Path: type[Path]
_digits: Digits

#: Those that every script has, then those of async ones.
__all__ = ["_P", "_Path", "_cfg", "_client", "_cls", "_digits", "_info", "_log", "_self"]
