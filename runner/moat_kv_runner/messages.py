"""What a script finds in `_cls`: the messages of `_info`, two exceptions, and `NotGiven`.

`admin` makes the messages of a job, `serving` the group's states. Scripts subclass them to tell
their sources apart, so each takes exactly one positional argument, its `msg`. The names and what
they carry are the product's surface. Pure values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moat_kv import errors
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv_runner.admin import Timer


@dataclass(frozen=True, kw_only=True)
class GroupSeen:
    """What a group's state was judged from."""

    members: tuple[str, ...]
    """The names that serve the group, of any kind of runner, in order; empty while cut off."""
    nodes: int | None
    """N: how many make the group complete; None if nobody said."""


class ActorState:
    """The base of all messages. `msg` is what it is about; scripts may subclass any of them."""

    msg: Any

    def __init__(self, msg: Any = None) -> None:
        self.msg = msg

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.msg!r})"


class CompleteState(ActorState):
    """At least N runners are in the group. `msg`: a `GroupSeen`, as in the other states."""


class PartialState(ActorState):
    """More than this runner, and fewer than N."""


class DetachedState(ActorState):
    """No other runner is in the group."""


class BrokenState(ActorState):
    """The group cannot be seen: the line to the server is broken."""


class RunnerMsg(ActorState):
    """The base of the messages that are not the group's state."""


class ChangeMsg(RunnerMsg):
    """A watched entry: its present value at the start, then each change. `msg`: the event."""

    @property
    def path(self) -> Path:
        """The absolute path of the entry."""
        path: Path = self.msg.path
        return path

    @property
    def value(self) -> Any:
        """The new value; there is no such attribute if the entry was deleted."""
        return self.msg.value

    def __contains__(self, key: object) -> bool:
        return key in self.msg


class MQTTmsg(RunnerMsg):
    """A broadcast message. `msg` has its `topic`, and `value`, or `raw` if that was asked for."""

    @property
    def topic(self) -> Path:
        topic: Path = self.msg.topic
        return topic

    @property
    def path(self) -> Path:
        """The topic, under the name that it has in a `ChangeMsg`."""
        return self.topic

    @property
    def value(self) -> Any:
        return self.msg.value

    @property
    def raw(self) -> bytes:
        raw: bytes = self.msg.raw
        return raw


class TimerMsg(RunnerMsg):
    """A timer has run out. `msg` is the timer, as `_self.timer` returned it."""

    msg: Timer


class ReadyMsg(RunnerMsg):
    """All watches have sent their present state. `msg` is the number of watches that fetch."""

    msg: int


class ErrorRecorded(Exception):
    """Raised by `_self.error` after the error has been recorded; the run counts as failed."""


class LostClaim(Exception):
    """Another runner has this job now, or may have it: whatever this run writes is refused."""


def claim_is_gone(job: Path) -> LostClaim:
    """For whoever acts for a job without having its claim any more."""
    return LostClaim(f"the claim of job {job} was deleted, or another runner has it")


def lost_claim(error: errors.MoatKvError) -> LostClaim:
    """The same loss, as scripts know it."""
    return LostClaim(str(error))


#: The classes of `_cls`, which has `NotGiven` too.
SCRIPT_CLASSES = (
    ActorState,
    CompleteState,
    PartialState,
    DetachedState,
    BrokenState,
    RunnerMsg,
    ChangeMsg,
    MQTTmsg,
    TimerMsg,
    ReadyMsg,
    ErrorRecorded,
    LostClaim,
)
