"""Plain writes that wait for the network's engine: taken, shown, and let go.

`engine.network` gives what it cannot write at once, or has waited for too long; it is answered when
it is on disk, and shown over the tree from then on. `engine.replaying` brings it into the log. Only
the newest write of a path waits; it stands on what the first one stood on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from moat_kv import entry, errors
from moat_kv.engine import age, base
from moat_kv.engine.copy_store import Pending
from moat_kv.engine.local_copy import LocalCopy
from moat_kv.entry import Head, Record, Write
from moat_kv.path import Path

#: So many paths may wait; then plain writes to others are refused.
LIMIT = 1_000_000


class Canvas(base.Replica, Protocol):
    """A replica that can show what is not in the log over what is."""

    def head(self, path: Path) -> Head | None:
        """As the log has it, whatever is shown."""

    def cover(self, record: Record) -> None:
        """Show this as its path's present state."""

    def uncover(self, path: Path) -> None:
        """Show what the log says again; without effect if the path is not covered."""

    def restart(self) -> None:
        """All that was applied is void, and everything comes again; what covers it stays.

        Until `complete`, the old state may be shown.
        """

    def complete(self) -> None:
        """Everything has come."""


class Outbox:
    """The newest write of each path that waits. Called in the event loop."""

    def __init__(
        self, copy: LocalCopy, canvas: Canvas, *, moment: Callable[[], age.Moment]
    ) -> None:
        self._copy = copy
        self._canvas = canvas
        self._moment = moment
        #: Also those that are on their way to the disk.
        self._newest: dict[Path, Pending] = dict(copy.outbox)
        #: Ids of writes that were given to the engine, of which it is not known that they failed.
        self.published: set[str] = set()
        for pending in self._newest.values():
            # The process before this one may have published it.
            self.published.update((pending.id, *pending.earlier))
            self._show(pending)
        #: Called with each write that waits now.
        self.on_kept: Callable[[Pending], None] = lambda pending: None

    def __len__(self) -> int:
        return len(self._newest)

    def __contains__(self, path: Path) -> bool:
        return path in self._newest

    def waiting(self) -> Iterable[Pending]:
        """What is on disk, oldest first."""
        return [self._newest[path] for path in self._copy.outbox if path in self._newest]

    def on_disk(self, path: Path) -> Pending | None:
        """What waits for a path, and is on disk."""
        return self._copy.outbox.get(path)

    def are_all(self, condition: Callable[[Pending], bool]) -> bool:
        """Whether it holds for all that wait, also for what is on its way to the disk."""
        return all(map(condition, self._newest.values()))

    def is_waiting(self, pending: Pending) -> bool:
        """Whether this very write waits still, and is on disk."""
        return self._copy.outbox.get(pending.path) == pending

    def take(
        self,
        write: Write,
        done: base.Done,
        *,
        made: age.Moment | None = None,
        contact_at: float | None = None,
        on: int = -1,
    ) -> None:
        """Keep a plain write, made at `made` (now) on top of a record of its path (the newest).

        `contact_at`: the engine's time when it had last been heard of then.
        """
        path = write.path
        before = self._newest.get(path)
        if before is None and len(self._newest) >= LIMIT:
            done(errors.Detached(f"{LIMIT} writes wait for the network already"))
            return
        if write.value is None:
            shown = self._canvas.head(path) if before is None else before
            write.void = shown is None or shown.value is None
        made = self._moment() if made is None else made
        contact_at = self.contact_at if contact_at is None else contact_at
        pending = self._pending(write, before, made, contact_at, on)
        self._newest[path] = pending

        def kept(error: errors.MoatKvError | None) -> None:
            if error is None:
                is_newest = self._newest.get(path) is pending
                if is_newest:
                    self._show(pending)
                done((_record_of(pending),))
                if is_newest:
                    self.on_kept(pending)
                return
            if self._newest.get(path) is pending:
                self._restore(path)
            if pending.id in self.published:
                error = errors.Unknown(f"it is on its way, and could not be kept here: {error}")
            done(error)

        self._copy.put(pending, kept)

    @property
    def contact_at(self) -> float:
        """The engine's time when it was last heard of, in seconds since 1970."""
        return self._copy.state.contact_at

    def _pending(
        self, write: Write, before: Pending | None, made: age.Moment, contact_at: float, on: int
    ) -> Pending:
        head = self._canvas.head(write.path)
        stands_on = on if on >= 0 else (0 if head is None else head.rev)
        earlier: tuple[str, ...] = ()
        if before is not None:
            stands_on, earlier = before.base, before.earlier
            if before.id in self.published:
                earlier = (*earlier, before.id)
        return Pending(
            write.path, write.value, stands_on, write.origin, write.tick, made, contact_at, earlier
        )

    def _restore(self, path: Path) -> None:
        on_disk = self._copy.outbox.get(path)
        if on_disk is None:
            del self._newest[path]
            self._canvas.uncover(path)
        else:
            self._newest[path] = on_disk

    def _show(self, pending: Pending) -> None:
        self._canvas.cover(_record_of(pending))

    def stored(self, path: Path, id: str) -> None:
        """The write with this id is in the log. A newer one for its path waits on."""
        self.published.discard(id)
        pending = self._newest.get(path)
        if pending is not None and pending.id == id:
            self.drop(pending)

    def drop(self, pending: Pending) -> None:
        """It waits no more: it is in the log, or among the conflicts."""
        self._copy.drop(pending)
        self.published.difference_update((pending.id, *pending.earlier))
        if self._newest.get(pending.path) is pending:
            del self._newest[pending.path]
            self._canvas.uncover(pending.path)


def _record_of(pending: Pending) -> Record:
    path, value, base_rev, origin, tick, made, *_ = pending
    return Record(entry.pending_rev(base_rev), path, value, made.wall, origin, tick)
