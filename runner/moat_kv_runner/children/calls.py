"""A call as it travels to a child, and what comes back when it has failed.

`process_run` makes them for `inside`, and the other way round. Plain values only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moat_kv import errors
from moat_kv.client import error_record
from moat_kv.path import Path
from moat_kv.proto import messages as wire_messages
from moat_kv_runner import messages

_STATES = {
    cls.__name__: cls
    for cls in (
        messages.CompleteState,
        messages.PartialState,
        messages.DetachedState,
        messages.BrokenState,
    )
}


@dataclass(frozen=True, kw_only=True)
class ChildCall:
    """All that a child has to know."""

    name: str
    """The procedure's."""
    text: str
    rev: int
    is_async: bool | None
    parameters: list[str]
    values: Mapping[str, Any]
    """Of its variables and globals."""
    required: list[str]
    """Stored modules to load first, in order."""
    overrides: list[str]
    """Stored modules that hide installed ones."""
    urls: list[str]
    epoch: str
    """In which the claim was written."""
    claim: Path
    fence: int
    token: str
    job: Path
    node: str
    every_node: bool
    queue_limit: int
    config: Mapping[str, Any]
    places: Mapping[str, Path]
    state: list[Any]
    """The group's, see `state_facts`."""
    log_level: int
    is_shared: bool

    def as_fields(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


def state_facts(state: messages.ActorState) -> list[Any]:
    """A group's state as it travels."""
    seen: messages.GroupSeen = state.msg
    return [type(state).__name__, list(seen.members), seen.nodes]


def state_of(facts: list[Any]) -> messages.ActorState:
    name, members, nodes = facts
    return _STATES[name](messages.GroupSeen(members=tuple(members), nodes=nodes))


# Failures ---------------------------------------------------------------------------------------


def failure_facts(error: BaseException, *, is_loss: bool) -> dict[str, Any]:
    """What a run failed with, as it travels. `is_loss`: the job's claim is gone."""
    what = "failed"
    if is_loss:
        what = "lost"
    elif isinstance(error, messages.ErrorRecorded):
        what = "recorded"
    text = str(error) if what == "recorded" else error_record.describe(error)
    return {
        "what": what,
        "text": error_record.one_line(text),
        "trace": error_record.format_trace(error),
    }


def failure_of(facts: Mapping[str, Any]) -> Exception:
    text, trace = str(facts.get("text")), str(facts.get("trace"))
    if facts.get("what") == "lost":
        return messages.LostClaim(text)
    if facts.get("what") == "recorded":
        return messages.ErrorRecorded(text)
    return error_record.FailedElsewhere(text, trace)


def answer_facts(error: Exception | None) -> dict[str, Any]:
    """What became of a child's question."""
    if error is None:
        return {}
    if isinstance(error, errors.MoatKvError):
        return wire_messages.error_fields(error)
    return {"lost": str(error)}


def raise_answer(facts: Mapping[str, Any]) -> None:
    if "lost" in facts:
        raise messages.LostClaim(facts["lost"])
    if "error" in facts:
        raise wire_messages.error_of(dict(facts))
