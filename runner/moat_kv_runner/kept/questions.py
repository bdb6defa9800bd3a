"""What a desk may ask of what runs have left, and how it travels. Pure.

A question goes to all runners of a group, as a fleeting message; those whom it concerns answer to a
topic that the desk has made up. What is not understood is no question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moat_kv import config
from moat_kv.path import Path

LINES, RUNS = "lines", "runs"
#: So many lines are told at once, at most.
MOST_LINES = 10_000


@dataclass(frozen=True, kw_only=True)
class Question:
    """See above."""

    token: str
    """Names the topic of the answers, below that of all answers."""
    number: int
    """Comes back with the answers."""
    what: str
    """`lines` or `runs`."""
    kind: str
    """Of the job: `any`, `at` or `all`."""
    path: Path
    """Of the job, below the jobs of its kind and group."""
    node: str | None = None
    """Only that one is to answer."""
    run: int | None = None
    """Only lines of that run."""
    count: int = 100
    """So many of the last lines, or fewer; 0 to `MOST_LINES`."""
    after: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By node, where an earlier answer ended; lines after that, instead of the last ones."""
    since: float | None = None
    """Of the last lines only those that came later, seconds since 1970."""

    def as_value(self) -> dict[str, Any]:
        """The message."""
        return dataclasses.asdict(self)


def parse(value: Any) -> Question | None:
    """The question in a message; None if it is none."""
    if not isinstance(value, Mapping):
        return None
    known = {item.name for item in dataclasses.fields(Question)}
    try:
        asked = Question(**{name: each for name, each in value.items() if name in known})
        after = {str(name): _place(each) for name, each in asked.after.items()}
    except (TypeError, ValueError, AttributeError):
        return None
    is_right = all(
        (
            isinstance(asked.token, str),
            type(asked.number) is int,
            asked.what in (LINES, RUNS),
            isinstance(asked.kind, str),
            isinstance(asked.path, Path),
            isinstance(asked.node, str | None),
            type(asked.run) in (int, type(None)),
            type(asked.count) is int and 0 <= asked.count <= MOST_LINES,
            isinstance(asked.since, float | None),
        )
    )
    return dataclasses.replace(asked, after=after) if is_right else None


def _place(value: Any) -> tuple[int, int]:
    segment, offset = value
    if type(segment) is not int or type(offset) is not int or min(segment, offset) < 0:
        raise ValueError("no place in a file")
    return segment, offset


def ask_topic(places: config.Places, group: Path) -> Path:
    """Where runners of a group are asked."""
    return places.group + group / "ask"


def answer_topic(places: config.Places, group: Path, token: str) -> Path:
    """Where they answer whoever has made up this token."""
    return places.group + group / "answer" / token
