"""What clients have asked of a server and what it answered, and whether a tree agrees with it.

Filled by the fault commands' clients, checked against what a server shows after a crash. Pure. Each
value that is written names its operation, so that the tree says which write it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moat_kv.path import Path

#: What is there at a path: the revision, and the number of the operation that wrote it.
Shown = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One request to write: several paths at once if it is a batch."""

    number: int
    paths: tuple[Path, ...]
    deletes: bool = False
    expect: int | None = None
    """The revision that a compare-and-set was conditional on."""


class Journal:
    """All operations since the last check, and what was known to be there then."""

    def __init__(self) -> None:
        self.answered = 0
        self.unanswered = 0
        self.refused = 0
        #: The highest revision that was ever answered or shown.
        self.highest = 0
        self._numbers = 0
        # Per path the newest answered revision with its operation.
        self._newest: dict[Path, tuple[int, Operation]] = {}
        # Operations of whose outcome nothing is known, and those that must not have happened.
        self._open: dict[int, Operation] = {}
        self._refused: dict[int, Operation] = {}
        self._revisions: dict[int, int] = {}
        self._won: dict[tuple[Path, int], int] = {}
        self._faults: list[str] = []

    # What clients tell --------------------------------------------------------------------------

    def asked(self, *paths: Path, deletes: bool = False, expect: int | None = None) -> Operation:
        """An operation is about to be sent."""
        self._numbers += 1
        operation = Operation(number=self._numbers, paths=paths, deletes=deletes, expect=expect)
        self._open[operation.number] = operation
        return operation

    def acknowledged(self, operation: Operation, revisions: Sequence[int]) -> None:
        """It was answered with success; a revision for each path (0: nothing was there)."""
        del self._open[operation.number]
        self.answered += 1
        for path, revision in zip(operation.paths, revisions, strict=True):
            if revision:
                self._note(path, revision, operation)
        if operation.expect is not None:
            place = operation.paths[0], operation.expect
            other = self._won.setdefault(place, operation.number)
            if other != operation.number:
                self._faults.append(f"{place[0]}: two operations replaced revision {place[1]}")

    def _note(self, path: Path, revision: int, operation: Operation) -> None:
        number = self._revisions.get(revision)
        newest = self._newest.get(path)
        if operation.deletes and number is not None:
            return  # it was deleted already, and the revision of that is the answer
        if number is not None:
            self._faults.append(
                f"revision {revision} was given to operations {number} and {operation.number}"
            )
        self._revisions[revision] = operation.number
        if newest is None or newest[0] < revision:
            self._newest[path] = revision, operation
        self.highest = max(self.highest, revision)

    def failed(self, operation: Operation) -> None:
        """It was answered with an error that says that nothing happened."""
        del self._open[operation.number]
        self.refused += 1
        self._refused[operation.number] = operation

    # Checking -----------------------------------------------------------------------------------

    def faults(self, shown: Mapping[Path, Shown]) -> list[str]:
        """A line for each way in which a tree disagrees; then the tree is what is known.

        `shown`: every path that has a value below the places that were written to.
        """
        self.unanswered += len(self._open)
        faults, self._faults = self._faults, []
        for path in {*shown, *self._newest, *self._open_paths()}:
            fault = self._fault_at(path, shown.get(path))
            if fault is not None:
                faults.append(f"{path}: {fault}")
        faults += self._halves(shown)
        self._begin_anew(shown)
        return faults

    def _open_paths(self) -> set[Path]:
        return {path for operation in self._open.values() for path in operation.paths}

    def _fault_at(self, path: Path, there: Shown | None) -> str | None:
        revision, newest = self._newest.get(path, (0, None))
        if there is None:
            gone = newest is None or newest.deletes
            if gone or any(one.deletes and path in one.paths for one in self._open.values()):
                return None
            assert newest is not None
            return f"operation {newest.number} (revision {revision}) is lost, nothing is there"
        present, number = there
        if newest is not None and number == newest.number:
            if present == revision:
                return None
            return f"operation {number} was answered as revision {revision}, not {present}"
        if number in self._refused:
            return f"operation {number} was refused, but it is there"
        if present <= revision:
            assert newest is not None
            return f"operation {newest.number} (revision {revision}) is lost, {present} is there"
        sent = self._open.get(number)
        if sent is None or path not in sent.paths or sent.deletes:
            return f"operation {number} is there, which nobody sent so"
        if present in self._revisions:
            return f"revision {present} was given out twice"
        return None

    def _halves(self, shown: Mapping[Path, Shown]) -> list[str]:
        """Batches that nobody has answered are there whole or not at all.

        The paths of a batch are written by batches of just these paths.
        """
        faults = []
        for operation in self._open.values():
            if len(operation.paths) > 1 and not operation.deletes:
                numbers = {shown.get(path, (0, 0))[1] for path in operation.paths}
                if len(numbers) > 1:
                    faults.append(f"operation {operation.number}: a half of a batch, {numbers}")
        return faults

    def _begin_anew(self, shown: Mapping[Path, Shown]) -> None:
        self._open.clear()
        self._refused.clear()
        self._won.clear()
        self._newest = {
            path: (revision, Operation(number=number, paths=(path,)))
            for path, (revision, number) in shown.items()
        }
        for revision, number in shown.values():
            self._revisions[revision] = number
            self.highest = max(self.highest, revision)
