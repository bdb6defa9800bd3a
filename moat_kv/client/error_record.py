"""Errors as entries: one record for a subsystem and a path, kept in the tree until it is resolved.

The runner records what fails and resolves it when it works again; the command line lists, resolves
by hand and comments. Several nodes may meet the same error, so a record holds a trace for each, and
is changed by compare-and-set. An error that comes back after it was resolved is counted anew.
Nothing here decides what is an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moat_kv import codec, errors
from moat_kv.config import Places
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.client import Client

#: A trace is cut in its middle above this, in characters: what failed is at its end, and where it
#: came from at its start.
TRACE_LIMIT = 12_000
#: So many nodes' traces are kept in one record.
TRACED_NODES = 20
#: One line for tables.
MESSAGE_LIMIT = 500
#: So many of a group's errors are described.
_PARTS = 5

#: What is kept of the data beside an error, and of how many items if it is more.
DATA_LIMIT_BYTES = 16 * 1024
_DATA_ITEMS = 20

BY_SUCCESS = "success"
BY_HAND = "hand"


@dataclass(frozen=True, kw_only=True)
class NodeTrace:
    """What one node saw, the last time it happened there."""

    at: float
    count: int = 1
    message: str = ""
    trace: str | None = None
    """The formatted traceback, with stored source lines."""
    data: Any = None
    """Whatever was recorded beside it."""
    id: str = ""
    """Of the occurrence; tells whether a write whose answer was lost has happened."""
    resolved: float | None = None
    """When it was over on this node alone."""


@dataclass(frozen=True, kw_only=True)
class ErrorRecord:
    """One error. Times are seconds since 1970."""

    subsystem: str
    path: Path
    count: int
    """How often it happened since it was last resolved."""
    first: float
    last: float
    message: str
    """Of the last occurrence, one line."""
    resolved: float | None = None
    """When it was resolved; None while it is open."""
    resolved_by: str | None = None
    """`success` or `hand`."""
    comment: str | None = None
    nodes: dict[str, NodeTrace] = field(default_factory=dict)

    def as_value(self) -> dict[str, Any]:
        """The entry's value."""
        value = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name != "nodes"
        }
        value["nodes"] = {name: dataclasses.asdict(seen) for name, seen in self.nodes.items()}
        return value


def of_value(value: Any) -> ErrorRecord:
    """The record in an entry's value. Raises BadValue if it is none."""
    if not isinstance(value, Mapping):
        raise errors.BadValue(f"no error record: a mapping is needed, not {value!r}")
    try:
        facts = _known(ErrorRecord, value)
        if not (isinstance(facts["path"], Path) and isinstance(facts["subsystem"], str)):
            raise TypeError("path or subsystem is of a wrong type")
        nodes = facts.pop("nodes", {})
        seen = {str(name): NodeTrace(**_known(NodeTrace, each)) for name, each in nodes.items()}
        return ErrorRecord(nodes=seen, **facts)
    except (TypeError, AttributeError, KeyError) as exc:
        raise errors.BadValue(f"no error record: {exc}") from exc


def _known(cls: type, value: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(cls)}
    return {name: each for name, each in value.items() if name in names}


def place(subsystem: str, path: Path, places: Places) -> Path:
    """Where the record of a subsystem and a path is.

    A path that leaves no room for the prefix is known by its digest; the record names it anyway.
    """
    try:
        return places.error / subsystem + path
    except errors.BadPath:
        return places.error / subsystem / hashlib.sha256(path.packed).digest()[:16]


class FailedElsewhere(Exception):
    """What was raised in another process, as it was described and traced there."""

    def __init__(self, text: str, trace: str) -> None:
        super().__init__(text)
        self.text = text
        self.trace = trace


def describe(exc: BaseException) -> str:
    """One line that says what an exception says, and its type unless it is one of ours."""
    if isinstance(exc, FailedElsewhere):
        return exc.text
    if isinstance(exc, BaseExceptionGroup):
        each = "; ".join(dict.fromkeys(describe(part) for part in exc.exceptions[:_PARTS]))
        return f"{len(exc.exceptions)} errors: {each}"[:MESSAGE_LIMIT]
    try:
        text = str(exc)
    except BaseException as fault:  # a script's own class may raise anything
        text = f"its text cannot be made ({type(fault).__name__})"
    text = one_line(text)
    if not isinstance(exc, errors.MoatKvError):
        text = f"{type(exc).__name__}: {text}" if text else type(exc).__name__
    return text[:MESSAGE_LIMIT]


def one_line(text: str) -> str:
    """A text that can be carried and shown in one line, not longer than `MESSAGE_LIMIT`."""
    return " ".join(_carried_text(text[: 2 * MESSAGE_LIMIT]).split())[:MESSAGE_LIMIT]


def _carried_text(text: str) -> str:
    """Lone surrogates, as names of files have them, cannot be carried."""
    return text.encode("utf-8", "backslashreplace").decode()


def format_trace(exc: BaseException) -> str:
    """The traceback as text, its middle left out if it is long."""
    if isinstance(exc, FailedElsewhere):
        return exc.trace
    text = _carried_text("".join(traceback.format_exception(exc)))
    if len(text) <= TRACE_LIMIT:
        return text
    head = TRACE_LIMIT // 4
    return (
        f"{text[:head]}\n  ... {len(text) - TRACE_LIMIT} characters left out ...\n"
        + (text[head - TRACE_LIMIT :])
    )


def with_occurrence(
    old: ErrorRecord | None, *, subsystem: str, path: Path, node: str, seen: NodeTrace
) -> ErrorRecord:
    """The record after one more occurrence; a resolved one is opened anew, from a count of 1."""
    if old is None or old.resolved is not None:
        return ErrorRecord(
            subsystem=subsystem,
            path=path,
            count=1,
            first=seen.at,
            last=seen.at,
            message=seen.message,
            nodes={node: seen},
        )
    before = old.nodes.get(node)
    count = before.count + 1 if before is not None else 1
    nodes = {**old.nodes, node: dataclasses.replace(seen, count=count)}
    return dataclasses.replace(
        old,
        count=old.count + 1,
        last=max(old.last, seen.at),
        message=seen.message,
        nodes=_shortened(nodes),
    )


def _shortened(nodes: dict[str, NodeTrace]) -> dict[str, NodeTrace]:
    """Only the latest nodes keep their traces and data, so that the record fits a frame."""
    if len(nodes) <= TRACED_NODES:
        return nodes
    latest = sorted(nodes, key=lambda name: nodes[name].at)[-TRACED_NODES:]
    return {
        name: seen if name in latest else dataclasses.replace(seen, trace=None, data=None)
        for name, seen in nodes.items()
    }


async def record(
    client: Client,
    subsystem: str,
    path: Path,
    *,
    node: str,
    exc: BaseException | None = None,
    message: str | None = None,
    data: Any = None,
    comment: str | None = None,
    places: Places | None = None,
) -> ErrorRecord:
    """Note that something failed, now, on this node; `exc` gives message and trace.

    Returns the record as it is then. Raises what the client's calls raise.
    """
    if message is None:
        message = describe(exc) if exc is not None else "failed"
    seen = NodeTrace(
        at=time.time(),
        message=one_line(message),
        trace=format_trace(exc) if exc is not None else None,
        data=_carried(data),
        id=secrets.token_hex(6),
    )

    def change(old: ErrorRecord | None) -> ErrorRecord | None:
        if old is not None and node in old.nodes and old.nodes[node].id == seen.id:
            return None
        new = with_occurrence(old, subsystem=subsystem, path=path, node=node, seen=seen)
        return new if comment is None else dataclasses.replace(new, comment=comment)

    where = place(subsystem, path, places or Places())
    found = await _change(client, where, change)
    assert found is not None  # there is one after this
    return found


async def resolve(
    client: Client,
    subsystem: str,
    path: Path,
    *,
    by: str = BY_HAND,
    node: str | None = None,
    comment: str | None = None,
    places: Places | None = None,
) -> bool:
    """Note that it is over. False if there was nothing to note. `comment` None leaves it as it is.

    `node`: only there; the record is resolved when the error is over on every node that had it.
    """
    done = False
    now = time.time()

    def change(old: ErrorRecord | None) -> ErrorRecord | None:
        nonlocal done
        if old is None or old.resolved is not None:
            return None
        changed = old if node is None else _over_on(old, node, now)
        if changed is None:
            return None
        done = True
        if node is None or all(seen.resolved is not None for seen in changed.nodes.values()):
            changed = dataclasses.replace(changed, resolved=now, resolved_by=by)
        return changed if comment is None else dataclasses.replace(changed, comment=comment)

    await _change(client, place(subsystem, path, places or Places()), change)
    return done


def _over_on(old: ErrorRecord, node: str, at: float) -> ErrorRecord | None:
    seen = old.nodes.get(node)
    if seen is None or seen.resolved is not None:
        return None
    return dataclasses.replace(
        old, nodes={**old.nodes, node: dataclasses.replace(seen, resolved=at)}
    )


async def annotate(
    client: Client, subsystem: str, path: Path, comment: str | None, *, places: Places | None = None
) -> bool:
    """Set or (None) remove a record's comment. False if there is no record."""

    def change(old: ErrorRecord | None) -> ErrorRecord | None:
        return None if old is None else dataclasses.replace(old, comment=comment)

    where = place(subsystem, path, places or Places())
    return await _change(client, where, change) is not None


async def find(
    client: Client, subsystem: str, path: Path, *, places: Places | None = None
) -> ErrorRecord | None:
    """The record of a subsystem and a path, open or resolved; None if there is none."""
    result = await client.get(place(subsystem, path, places or Places()))
    return of_value(result.value) if "value" in result else None


async def records(
    client: Client,
    *,
    subsystem: str | None = None,
    under: Path | None = None,
    resolved: bool | None = False,
    places: Places | None = None,
) -> list[ErrorRecord]:
    """All records, the latest first.

    `resolved` False: open ones; True: resolved ones; None: both. `under`: only those whose path is
    there or below.
    """
    base = (places or Places()).error
    if subsystem is not None:
        base = base / subsystem
    found: list[ErrorRecord] = []
    async for row in client.get_tree(base):
        try:
            each = of_value(row.value)
        except errors.BadValue:
            continue  # somebody's own entry
        is_wanted = resolved is None or (each.resolved is not None) is resolved
        if is_wanted and (under is None or each.path.startswith(under)):
            found.append(each)
    found.sort(key=lambda each: each.last, reverse=True)
    return found


async def _change(
    client: Client, where: Path, change: Callable[[ErrorRecord | None], ErrorRecord | None]
) -> ErrorRecord | None:
    """Change a record by compare-and-set, until it holds; None from `change` leaves it as it is."""
    while True:
        result = await client.get(where)
        old: ErrorRecord | None = None
        if "value" in result:
            try:
                old = of_value(result.value)
            except errors.BadValue:
                old = None  # not a record; ours goes over it
        new = change(old)
        if new is None:
            return old
        try:
            await client.set(where, new.as_value(), expect=result.rev)
        except (errors.Conflict, errors.Unknown):
            continue
        return new


def _carried(data: Any, depth: int = 3, limit_bytes: int = DATA_LIMIT_BYTES) -> Any:
    """The data, or what can be carried of it: texts stand for what cannot, or is too much."""
    try:
        # As deep as it will be in the record.
        packed = codec.pack([[[[data]]]])
        codec.check(packed)
        if len(packed) <= limit_bytes:
            return data
    except errors.BadValue:
        pass
    if isinstance(data, Mapping) and depth:
        items = list(data.items())[:_DATA_ITEMS]
        share = limit_bytes // len(items)
        return {one_line(_shown(key)): _carried(each, depth - 1, share) for key, each in items}
    return one_line(_shown(data))


def _shown(data: Any) -> str:
    try:
        return data if isinstance(data, str) else repr(data)
    except Exception as fault:  # a script's own class may raise anything
        return f"<{type(data).__name__}, {type(fault).__name__} in its repr>"
