"""What becomes of jobs, in rows: for `run at`, `run info`, `run board` and the demonstration.

Reads jobs, their states and their claims, and writes nothing. A row has all that a program may ask
for; `for_people` takes away from it what the row says already.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

from moat_kv import config, errors
from moat_kv.path import Path
from moat_kv_cli import placement
from moat_kv_runner import job as spec
from moat_kv_runner import schedule

if TYPE_CHECKING:
    from moat_kv import Client

#: What people see of a job.
COLUMNS = ["path", "code", "state", "node", "started", "due", "reason", "result", "info"]

#: Reasons that tell no more than the word for what the job does.
_NO_NEWS = ("running", "done", "stopped")


async def job_rows(client: Client, which: placement.Placement, below: Path) -> list[dict[str, Any]]:
    """A row for each job, by path; one for each node where all nodes run it."""
    places = await config.load_places(client)
    jobs, states = placement.places_of(which, places)
    found = {each.path: each.value async for each in client.get_tree(states)}
    claimed = {each.path async for each in client.get_tree(places.claim + which.prefix)}
    nodes = sorted({str(each[0]) for each in found}) if which.kind == "all" else [""]
    asked = {below + each.path: each.value async for each in client.get_tree(jobs + below)}
    rows = []
    for path, job in sorted(asked.items()):
        if not path:
            continue  # the group's own settings
        places_of = {node: Path(node) + path if node else path for node in nodes}
        past = {node: place for node, place in places_of.items() if place in found}
        for node, place in (past or {"": path}).items():
            state = spec.parse_state(found.get(place))
            rows.append(_row(path, job, node, state, is_claimed=place in claimed))
    return rows


def _row(
    path: Path, entry: Any, node: str, known: spec.JobState, *, is_claimed: bool
) -> dict[str, Any]:
    is_job = isinstance(entry, dict)
    job = entry if is_job else {}
    state = word(job, known, is_claimed=is_claimed)
    shown = {
        "path": str(path),
        "code": job.get("code"),
        "state": state,
        "node": known.node or node or None,
        "started": known.started,
        "stopped": known.stopped,
        "due": _due(job, known) if state in ("waiting", "failed", "done") else None,
        "result": known.result,
        "info": job.get("info"),
        "reason": known.reason if is_job or known.reason else f"a job is a mapping, not {entry!r}",
        **{name: job.get(name) for name in ("isolate", "share", "env", "limits")},
    }
    return {name: value for name, value in shown.items() if value is not None}


def word(job: Mapping[str, Any], state: spec.JobState, *, is_claimed: bool) -> str:
    """What a job does, in a word or two."""
    if state.running:
        if is_claimed:
            return "running"
        # Its runner cannot say so any more if it has died, but then it has lost its claim.
        return "stopped" if _was_stopped(state) else "cut off"
    if job.get("enabled") is False:
        return "disabled"
    target = job.get("target")
    if target is None:
        return "not started"
    if not _is_time(target) or state.started is None or target > state.started:
        return "waiting"
    if job.get("cron") and not state.backoff and not state.interrupted:
        return "waiting"
    return _ended(state)


def _is_time(target: Any) -> TypeGuard[float]:
    """Whether it is one at all: anybody may have written the entry."""
    return isinstance(target, int | float)


def _due(job: Mapping[str, Any], state: spec.JobState) -> float | None:
    """When it is to start next, as its runner has computed it, or as the job says."""
    if state.computed is not None:
        return state.computed
    if job.get("cron") is not None and not state.parked:
        return _due_by_cron(job, state)
    target = job.get("target")
    is_asked_for = _is_time(target) and target > (state.started or 0)
    return target if is_asked_for and state.reason is None else None


def _due_by_cron(job: Mapping[str, Any], state: spec.JobState) -> float | None:
    try:
        asked = spec.parse_spec(job)
    except errors.BadValue:
        return None
    return schedule.due(asked, state, time.time()).at


def _was_stopped(state: spec.JobState) -> bool:
    """Whether a runner that ends has left the run, and said so."""
    return state.reason not in (None, "running")


def _ended(state: spec.JobState) -> str:
    if state.parked is not None:
        return "parked"
    return "failed" if state.backoff else "stopped" if state.interrupted else "done"


def event_word(state: spec.JobState) -> str:
    """What a state says that has happened, in a word."""
    if state.running:
        return "stopped" if _was_stopped(state) else "running"
    return "waiting" if state.started is None or _waits(state) else _ended(state)


def _waits(state: spec.JobState) -> bool:
    return state.reason is not None and state.reason.startswith("waiting: ")


def for_people(row: dict[str, Any]) -> dict[str, Any]:
    """The row without what it would say twice."""
    said = row.get("event", row.get("state"))
    shown = dict(row)
    reason = row.get("reason")
    if reason is not None:
        shown["reason"] = None if reason in _NO_NEWS else reason.removeprefix(f"{said}: ")
    if "event" in row and said == "running":
        shown.pop("result", None)  # that of the run before
    return shown
