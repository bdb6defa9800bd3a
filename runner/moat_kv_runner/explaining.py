"""Why a job is not running now, and when it will be, in one line. Pure.

The command line asks it with what it has read; nothing is asked of the job's runner, which may be
the very thing that is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moat_kv import errors
from moat_kv.notgiven import NotGiven
from moat_kv_runner import claims, parting, placing, schedule
from moat_kv_runner.job import JobSpec, JobState, parse_spec
from moat_kv_runner.node_facts import NodeFacts

#: A runner that could have begun is given so long to do it, in seconds.
_PROMPT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a job of one node, or of any."""

    job: Any
    """Its entry's value."""
    key: bytes
    """The packed path of its entry."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of its group."""
    state: JobState = field(default_factory=JobState)
    claim: Any = NotGiven
    """Its claim's value."""
    runners: Mapping[str, NodeFacts] = field(default_factory=dict)
    """Those that serve the group now and where it may run, with what they tell of themselves."""
    drained: Collection[str] = ()
    """Nodes that take no jobs."""
    whose: str = "its group"
    """Where it may run, in words."""
    kind: str = "any"
    parted: bool = False
    """The server that was asked has been cut off for longer than claims hold."""
    parts: Mapping[str, JobState] = field(default_factory=dict)
    """Its states where it ran without a claim, by runner."""
    reconcile: str = parting.RULES[0]
    """Of its group."""


class Why(NamedTuple):
    """`at`: when it starts, seconds since 1970; None: not as things are."""

    text: str
    at: float | None = None


def why(known: Known, now: float) -> Why:
    """The one reason that comes first."""
    state = known.state
    holder = claims.holder_of(known.claim)
    apart = _apart(known, holder)
    if apart is not None:
        return Why(apart)
    if state.running and holder is not None and not known.parted:
        if state.reason not in (None, "running"):
            return Why(f"on {holder}: {state.reason}")
        return Why(f"it is running on {holder}")
    try:
        spec = parse_spec(known.job, known.defaults)
    except errors.BadValue as exc:
        return Why(f"its entry is wrong: {exc.reason}")
    if not spec.enabled:
        return Why("it is disabled; `enable` lets it run")
    if spec.target is None:
        return Why("it has no time; `set -t 0` starts it now")
    due = schedule.due(spec, state, now, key=known.key)
    if due.parked:
        return Why(f"{due.why}; {state.reason or 'failed'}")
    if due.at is None:
        return Why(_over(due.why, state))
    return Why(_reason(known, spec, holder, due, now), due.at)


def _apart(known: Known, holder: str | None) -> str | None:
    """Where it runs without a claim, if that is somewhere."""
    open_ones = {name: each for name, each in known.parts.items() if each.settled is None}
    runs = sorted(n for n, each in open_ones.items() if each.running and n in known.runners)
    if known.kind != "any" and known.parted and known.state.running and not known.state.fence:
        runs = sorted(known.runners)[:1]
    if not runs:
        return None
    names = ", ".join(runs)
    if known.parted:
        return f"it is running on {names} without a claim: the server is cut off"
    if known.state.running and holder is not None and holder not in runs:
        names = f"{holder}, and on {names} since the network was parted"
        return f"it is running on {names}; one is about to go on ({known.reconcile})"
    return f"it is running on {names}, and about to have a claim again"


def _parted(spec: JobSpec, state: JobState) -> str | None:
    """Why it does not run where there is no agreement."""
    if spec.on_split == "fenced":
        return "the server is cut off, and `on_split` is fenced: it waits for the network"
    if spec.on_split == "stick":
        had = f"runner {state.sticks_to} had it" if state.sticks_to else "nobody had it here"
        return f"the server is cut off, `on_split` is stick, and {had}: it waits for the network"
    return None


def _over(why: str, state: JobState) -> str:
    if why == "done":
        return "it has run; `restart` or `set -t 0` runs it again"
    return f"{why}; {state.reason}" if state.reason else why


def _reason(known: Known, spec: JobSpec, holder: str | None, due: schedule.Due, now: float) -> str:
    """Why one that is due, or will be, has not begun."""
    state, waits = known.state, known.state.reason or ""
    if not known.runners:
        return f"no runner serves {known.whose} now"
    able = sorted(name for name, facts in known.runners.items() if placing.suits(spec, facts))
    if not able:
        missing = ", ".join(spec.require)
        return f"no runner of {known.whose} has what it requires: {missing}"
    if not set(able).difference(known.drained):
        return f"{', '.join(able)} could run it, but is drained"
    if due.at is not None and due.at > now:
        return f"{due.why}; {waits}" if state.backoff else due.why
    if known.parted:
        return _parted(spec, state) or "the server is cut off; it is about to start without a claim"
    if spec.on_split == "stick" and holder is None and state.sticks_to is not None:
        text = "runner {0} had it, and is not known to be dead (`on_split` is stick); it goes on"
        return f"{text.format(state.sticks_to)} there, or `let-go` gives it to others"
    if known.claim is not NotGiven and not claims.is_made(known.claim):
        return "no runner has written its claim; delete that, or it is taken over in a while"
    if holder is not None and holder not in known.runners:
        return f"runner {holder} had it and is not there; another has it when its session has ended"
    if waits.startswith("waiting: "):
        return waits.removeprefix("waiting: ")
    if holder is not None:
        return f"runner {holder} has it and is about to start it"
    if due.at is not None and now - due.at > _PROMPT_S:
        return f"nobody has taken it yet; {', '.join(able)} could"
    return "it is about to start"
