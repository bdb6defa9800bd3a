"""What happens to jobs and nodes, from one look to the next: rows for `run monitor`. Pure.

`Seen` keeps what a watch has told, so that after a reset only what has really changed is told
again, and nothing that was missed meanwhile is left out. The functions make rows of changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import moat_kv
from moat_kv.client import results
from moat_kv.client.watch import Event
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_cli import placement, progress
from moat_kv_runner import claims
from moat_kv_runner import job as spec

#: What people see of an event.
COLUMNS = ["at", "for", "path", "node", "event", "result", "reason"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """An entry that is another than before."""

    path: Path
    """Absolute."""
    before: Any
    after: Any
    """NotGiven: there is none."""
    at: float
    """Seconds since 1970; 0 if it was only found missing."""
    rev: int
    is_old: bool
    """It was there before anybody watched."""


class Seen:
    """What a watch with `fetch` has told so far."""

    def __init__(self) -> None:
        self._values: dict[Path, Any] = {}
        # What was told since the state began to be told, if that goes on.
        self._told: set[Path] | None = set()
        self._is_first = True

    def take(self, event: Event) -> list[Change]:
        """The changes in the next thing that the watch tells."""
        if isinstance(event, moat_kv.WatchEvent):
            if self._told is not None:
                self._told.add(event.path)
            return list(self._set(event.path, event.get("value", NotGiven), event.at, event.rev))
        if isinstance(event, results.Reset):
            self._told = set()
        elif isinstance(event, results.Ready) and self._told is not None:
            gone, self._told, self._is_first = self._values.keys() - self._told, None, False
            return [change for path in gone for change in self._set(path, NotGiven, 0.0, 0)]
        return []

    def _set(self, path: Path, value: Any, at: float, rev: int) -> Iterator[Change]:
        before = self._values.pop(path, NotGiven)
        if value is not NotGiven:
            self._values[path] = value
        if before is NotGiven and value is NotGiven:
            return
        if before is NotGiven or value is NotGiven or before != value:
            yield Change(
                path=path, before=before, after=value, at=at, rev=rev, is_old=self._is_first
            )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which job an entry below the states, or the claims, is about."""

    kind: str
    node: str | None
    """Where the place itself names a node."""
    path: Path

    def as_facts(self) -> dict[str, Any]:
        whose = self.node if self.kind == "at" else self.kind
        return {"for": whose, "path": str(self.path)}


def place_of(below: Path, group: Path, which: placement.Placement | None) -> Place | None:
    """The job of an entry; None if it is none of this group, or not of those asked for.

    `below`: its path below the place of states, or of claims; `which` None: all of the group.
    """
    kind, *rest = below or ("",)
    node: str | None = None
    place = Path.build(rest)
    if kind == "at" and place:
        node, place = str(place[0]), place[1:]
    if kind not in ("any", "at", "all") or not place.startswith(group):
        return None
    place = place[len(group) :]
    if kind == "all" and place:
        node, place = str(place[0]), place[1:]
    if not place or (which is not None and which.kind != kind):
        return None
    if which is not None and which.kind == "at" and which.node != node:
        return None
    return Place(kind=kind, node=node, path=place)


def state_rows(place: Place, change: Change) -> list[dict[str, Any]]:
    """What a change of a state tells: a start, an end, another reason to wait."""
    if change.after is NotGiven:
        return [_row(place, change, "forgotten", {})]
    before, after = spec.parse_state(change.before), spec.parse_state(change.after)
    facts = after.as_value()
    rows = []
    is_another = after.started is not None and after.started != before.started
    if is_another and not after.running and not change.is_old:
        began = {"started": after.started, "node": after.node, "fence": after.fence}
        rows.append(_row(place, change, "running", began))
    rows.append(_row(place, change, progress.event_word(after), facts))
    return rows


def claim_rows(place: Place, change: Change, *, was_running: bool) -> list[dict[str, Any]]:
    """What a change of a claim tells. `was_running`: the job's state says that it runs."""
    rows = []
    before, after = claims.holder_of(change.before), claims.holder_of(change.after)
    if change.before is not NotGiven:
        word = "lost" if was_running or change.after is not NotGiven else "released"
        rows.append(_row(place, change, word, {"node": before}))
    if change.after is not NotGiven:
        rows.append(_row(place, change, "claimed", {"node": after, "fence": change.rev}))
    return rows


def member_rows(
    before: Mapping[str, results.MemberInfo], after: Mapping[str, results.MemberInfo], at: float
) -> list[dict[str, Any]]:
    """Nodes that have come and gone."""
    rows = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None and new is not None:
            rows.append({"at": at, "node": name, "event": "come", "roles": list(new.roles)})
        elif new is None:
            rows.append({"at": at, "node": name, "event": "gone"})
    return rows


def _row(place: Place, change: Change, word: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    row = {"at": change.at or None, **place.as_facts(), "event": word, "node": place.node, **facts}
    return {name: value for name, value in row.items() if value is not None}
