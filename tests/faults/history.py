"""A record of what clients have asked and been answered, for the checks that run afterwards.

Fault commands fill a `Recorder` (or let `recording.Recorded` do it for a client), the checks
(`linearizability`, `membership`) take its operations. As JSON lines, one operation each, so that a
run can be checked again later. Nothing here judges.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TextIO, get_args

Kind = Literal["read", "write", "cas", "delete"]
"""What was asked. `cas` is a write, and a `delete` may be one too, under the condition `expect`."""

Outcome = Literal["ok", "failed", "unknown", "pending"]
"""What was answered:

- ok: it happened;
- failed: it is certain that nothing happened;
- unknown: nobody knows. It may take effect at any later time, or never;
- pending: it was accepted without agreement. It may take effect later, or lose.
"""

Value = int | str
"""What entries hold in such a run. A value is written once to a key: it names its write."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One request and its answer."""

    number: int
    """In the order in which they were begun, from 1."""
    client: str
    """Who asked. A client waits for an answer, or gives up on it, before it asks again."""
    key: str
    kind: Kind
    begin: float
    """When it was sent, in seconds of a monotonic clock that all clients share."""
    end: float | None = None
    """When it was answered or given up; None if neither came before the record's end."""
    outcome: Outcome = "unknown"
    value: Value | None = None
    """What was written, or read; None: nothing was there, or nothing is known."""
    expect: int | None = None
    """The revision that the entry must have, 0: there must be none."""
    rev: int | None = None
    """The revision that was written, or of what was read (0: nothing was there)."""
    deleted: bool | None = None
    """For a deletion: whether there was something to delete."""
    strict: bool = False
    """It asked for the network's agreement; a read without that may be of one server's copy."""
    error: str = ""
    """The name of the error that was answered."""
    have: int | None = None
    """For a Conflict: the revision that was found."""

    @property
    def is_open(self) -> bool:
        """It may still take effect after whatever is known of it."""
        return self.kind != "read" and self.outcome in ("unknown", "pending")

    def __str__(self) -> str:
        return f"{self.client}: {_asked(self)} -> {_answered(self)}"


def _asked(operation: Operation) -> str:
    words = {"read": "get", "write": f"set {operation.value}", "cas": f"set {operation.value}"}
    asked = words.get(operation.kind, "delete")
    if operation.expect is not None:
        asked += f" if revision {operation.expect}"
    return asked


def _answered(operation: Operation) -> str:
    if operation.outcome != "ok":
        found = "" if operation.have is None else f", found revision {operation.have}"
        return " ".join(filter(None, [operation.outcome, operation.error])) + found
    if operation.kind == "read":
        return f"{operation.value} of revision {operation.rev}" if operation.rev else "nothing"
    if operation.deleted is False:
        return "there was nothing"
    return f"revision {operation.rev}"


class Recorder:
    """Takes note of operations as they begin and end.

    `file`: gets a line when one has ended, and for what may change something also when it begins,
    so that a record that breaks off knows of all that may have happened. `clock`: seconds,
    monotonic, the same for all processes whose records are to be joined.
    """

    def __init__(
        self, file: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.operations: list[Operation] = []
        self._file = file
        self._clock = clock
        self._numbers = itertools.count(1)
        self._running: dict[int, Operation] = {}

    def begin(
        self,
        client: str,
        key: str,
        kind: Kind,
        *,
        value: Value | None = None,
        expect: int | None = None,
        strict: bool = False,
    ) -> int:
        """An operation is about to be sent; its number, to be given to `end`."""
        number = next(self._numbers)
        operation = Operation(
            number=number,
            client=client,
            key=key,
            kind=kind,
            begin=self._clock(),
            value=value,
            expect=expect,
            strict=strict,
        )
        self._running[number] = operation
        if kind != "read":
            self._write(operation)
        return number

    def end(self, number: int, outcome: Outcome, **answer: Any) -> Operation:
        """It was answered, or given up. `answer`: further fields of `Operation`."""
        end = self._clock()
        begun = self._running.pop(number)
        operation = dataclasses.replace(begun, end=end, outcome=outcome, **answer)
        self.operations.append(operation)
        self._write(operation)
        return operation

    def close(self) -> list[Operation]:
        """Nothing comes any more; all operations in the order in which they were begun."""
        self.operations.extend(self._running.values())
        self._running.clear()
        self.operations.sort(key=lambda operation: operation.number)
        return self.operations

    def _write(self, operation: Operation) -> None:
        if self._file is not None:
            self._file.write(to_line(operation) + "\n")


_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Operation)
    if field.default is not dataclasses.MISSING
}


def to_line(operation: Operation) -> str:
    """One operation as a line of JSON, without what is as it mostly is."""
    fields = dataclasses.asdict(operation)
    kept = {
        name: value
        for name, value in fields.items()
        if name not in _DEFAULTS or value != _DEFAULTS[name]
    }
    return json.dumps(kept, separators=(",", ":"))


def from_line(line: str) -> Operation:
    """What `to_line` gave. Raises ValueError for anything else."""
    try:
        operation = Operation(**json.loads(line))
    except TypeError as exc:
        raise ValueError(f"no operation: {line:.80}") from exc
    if operation.kind not in get_args(Kind) or operation.outcome not in get_args(Outcome):
        raise ValueError(f"no operation: {line:.80}")
    return operation


def load(source: TextIO | pathlib.Path) -> list[Operation]:
    """The operations of a file of JSON lines, in the order in which they were begun.

    A last line that was cut off (whoever wrote it was killed) is left out. Raises ValueError.
    """
    if isinstance(source, pathlib.Path):
        source = io.StringIO(source.read_text())
    last: dict[tuple[str, int], Operation] = {}
    for line in source:
        if line.endswith("\n") and line.strip():
            operation = from_line(line)
            last[operation.client, operation.number] = operation
    return sorted(last.values(), key=lambda operation: (operation.begin, operation.number))


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each key, in the given order."""
    keys: dict[str, list[Operation]] = {}
    for operation in operations:
        keys.setdefault(operation.key, []).append(operation)
    return keys
