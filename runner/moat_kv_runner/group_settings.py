"""A group's settings: the value of the entry that its jobs are below. Pure.

`roots` reads them for its jobs and logs what is wrong, the command line shows it. What is wrong is
left out, named, and the rest holds: one slip must not stop a group's jobs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moat_kv import errors
from moat_kv.notgiven import NotGiven
from moat_kv_runner import attributes, job, parting


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """What holds, and what is wrong."""

    nodes: int | None = None
    """N: how many runners make the group complete, from 1; None if nobody said."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the jobs that do not say themselves; of the names in `job.DEFAULTS`."""
    drained: frozenset[str] = frozenset()
    """Nodes that take no jobs for any node, and leave those that they have to others."""
    reconcile: str = parting.RULES[0]
    """Which of a job's runs goes on that were one in each part of the network."""
    problems: tuple[str, ...] = ()
    """A sentence for each setting that is left out: its name, and what would be right."""


_NAMES = ("nodes", "defaults", "drained", "reconcile")


def parse(value: Any) -> GroupSettings:
    """The settings in the entry's value; NotGiven and None: there are none."""
    if value is NotGiven or value is None:
        return GroupSettings()
    if not isinstance(value, Mapping):
        return GroupSettings(problems=(f"a mapping of {_listed(_NAMES)} is needed, not {value!r}",))
    problems = [
        _unknown(name, "setting of a group", _NAMES) for name in value if name not in _NAMES
    ]
    nodes = value.get("nodes")
    if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1):
        problems.append(f"nodes: a whole number from 1 is needed, not {nodes!r}")
        nodes = None
    drained = value.get("drained") or []
    if not isinstance(drained, list) or not all(isinstance(name, str) for name in drained):
        problems.append(f"drained: a list of names of nodes is needed, not {drained!r}")
        drained = []
    reconcile = value.get("reconcile")
    if reconcile is not None and reconcile not in parting.RULES:
        problems.append(f"reconcile: one of {_listed(parting.RULES)} is needed, not {reconcile!r}")
        reconcile = None
    defaults = value.get("defaults")
    if defaults is not None and not isinstance(defaults, Mapping):
        problems.append(f"defaults: a mapping of {_listed(job.DEFAULTS)} is needed")
        defaults = None
    good = {}
    for name, each in (defaults or {}).items():
        if name not in job.DEFAULTS:
            problems.append(f"defaults.{_unknown(name, 'default of jobs', job.DEFAULTS)}")
        elif each is not None:
            try:
                good[name] = attributes.checked(name, each)
            except errors.BadValue as exc:
                problems.append(f"defaults.{exc.reason}")
    return GroupSettings(
        nodes=nodes,
        defaults=good,
        drained=frozenset(drained),
        reconcile=reconcile or parting.RULES[0],
        problems=tuple(problems),
    )


def _unknown(name: Any, what: str, known: tuple[str, ...]) -> str:
    return f"{name}: there is no such {what}; there are {_listed(known)}"


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
