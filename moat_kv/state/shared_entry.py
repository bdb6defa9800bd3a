"""A shared model's entry in the tree: locking it, committing to it, following it.

`sharing` makes one for each slot that it shares. What talks to the client runs in the client's
event loop; `committing` and `entering` come through a `Ground`. An entry's value is a mapping:
`state`, as `serialize` gave it, `version` of its schema, and `by`, which is different for each
commit, so that one whose answer got lost can be found again.
"""

from __future__ import annotations

import itertools
import logging
import os
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from moat_kv import errors as kv_errors
from moat_kv.state import errors, loops, stored

if TYPE_CHECKING:
    from moat_kv.client.client import Client
    from moat_kv.client.results import Entry
    from moat_kv.path import Path
    from moat_kv.state import kept_lock
    from moat_kv.state.grounds import Ground
    from moat_kv.state.model import StateModel
    from moat_kv.state.reach import Reach
    from moat_kv.state.slot import Slot

logger = logging.getLogger(__name__)

#: For the locks of models, if a State says nothing else; in seconds.
LOCK_TIMEOUT_S = 500.0
#: So many earlier states are looked through for a commit whose answer got lost.
HISTORY = 100
#: How long until a server that is cut off is asked again what has become of one, in seconds.
AGAIN_S = 0.2


class SharedEntry:
    """See the module."""

    def __init__(
        self, slot: Slot, client: Client, reach: Reach, path: Path, lock: kept_lock.KeptLock | None
    ) -> None:
        self.slot = slot
        self.path = path
        #: None: commits go without lock and revision.
        self._lock = lock
        self._client = client
        self._reach = reach
        self._epoch = ""
        # The commit that the runtime state came from.
        self._by: str | None = None
        self._own = f"{uuid.uuid4().hex[:12]}.{os.getpid()}."
        self._counter = itertools.count(1)
        # Commits that wait for an answer, and what the watch has told of them.
        self._under_way: dict[str, Entry | None] = {}

    @property
    def is_plain(self) -> bool:
        return self._lock is None

    # The lock -----------------------------------------------------------------------------------

    async def lock(self, ground: Ground, timeout_s: float | None) -> None:
        """Take the network's lock, and have the state that is there then.

        Raises LockTimeout, Detached, and what the stored state cannot be read for.
        """
        if self._lock is not None:
            await ground.io(self._reach, self._enter, self._lock, timeout_s)

    async def _enter(self, lock: kept_lock.KeptLock, timeout_s: float | None) -> None:
        limit_s = LOCK_TIMEOUT_S if timeout_s is None else timeout_s
        try:
            await lock.enter(limit_s)
        except kv_errors.AlreadyLocked as exc:
            raise errors.LockTimeout(self.slot.label, limit_s) from exc
        except kv_errors.Disconnected as exc:
            raise detached(exc) from exc
        try:
            await self.refresh()
        except BaseException:
            await lock.release()
            raise

    async def unlock(self, ground: Ground) -> None:
        """Let others have the lock, at once or soon."""
        if self._lock is not None:
            await ground.finish(self._reach, self._lock.leave)

    # What is there ------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read the entry. Raises Detached; SchemaTooNew and the like if it cannot be read."""
        try:
            found = await self._client.get(self.path)
        except kv_errors.Disconnected as exc:
            raise detached(exc) from exc
        self.take(found)

    def take(self, found: Entry) -> None:
        """Make an entry that was read or watched the runtime state, unless that is newer.

        Raises what its state cannot be read for; the runtime state stays then.
        """
        if "value" not in found:
            self._lose(found.rev)
            return
        state, version, by = self._parts(found.value)
        if by in self._under_way:
            self._under_way[by] = found
        elif self._is_news(found, by):
            made = None
            if by != self._by:
                made = stored.restored(self.slot.present, state, version)
            self._put(found, by, made)

    def _parts(self, value: Any) -> tuple[dict[str, Any], int, str]:
        try:
            return dict(value["state"]), value["version"], value["by"]
        except (KeyError, TypeError, ValueError) as exc:
            raise kv_errors.BadValue(f"not the state of a model: {exc!r}", self.path) from exc

    def _is_news(self, found: Entry, by: str) -> bool:
        if self._client.server.epoch != self._epoch:
            return True
        if found.pending:
            return not by.startswith(self._own)
        return found.rev > self.slot.rev

    def _put(self, found: Entry, by: str, made: StateModel | None) -> None:
        slot = self.slot
        with slot.mutex:
            if not self._is_news(found, by):
                return  # a commit of our own has come between
            if made is None:
                slot.advance(found.rev)
            else:
                slot.install(made, found.rev)
            self._by, self._epoch = by, self._client.server.epoch
        slot.outgoing.go_on()

    def _lose(self, rev: int) -> None:
        """The entry was deleted, by that revision (0: not known)."""
        slot = self.slot
        with slot.mutex:
            if slot.rev and not 0 < rev < slot.rev:
                logger.warning("the entry of %s at %s is gone", slot.label, self.path)
                slot.advance(0)

    def follow(self, found: Entry) -> None:
        """`take` for the watch, which goes on whatever comes."""
        try:
            self.take(found)
        except Exception:
            logger.exception("the state of %s at %s cannot be taken", self.slot.label, self.path)

    # Committing ---------------------------------------------------------------------------------

    def value_of(self, model: StateModel) -> dict[str, Any]:
        return {
            "state": model.serialize(),
            "version": type(model).schema_version,
            "by": f"{self._own}{next(self._counter)}",
        }

    async def open(self) -> bool:
        """Read the entry, or make it of the runtime state; whether it was there."""
        try:
            found = await self._client.get(self.path)
            if "value" not in found:
                value = self.value_of(self.slot.present)
                made = await self._client.set(self.path, value, expect=found.rev)
                self._by, self._epoch = value["by"], self._client.server.epoch
                self.slot.advance(made.rev)
                return False
        except (kv_errors.Conflict, kv_errors.Unknown):
            return await self.open()  # somebody, or this very call, has made it
        except kv_errors.Disconnected as exc:
            raise detached(exc) from exc
        self.take(found)
        return True

    async def publish(
        self, ground: Ground, candidate: StateModel, have: int, *, force: bool, later: bool
    ) -> int:
        """Make a model the entry's state and the runtime state; its revision.

        Raises StaleModel if the entry is not at `have`; StaleFence if the lock was lost; Detached;
        Unknown if it cannot be found out whether it happened.
        """
        value = self.value_of(candidate)
        by = value["by"]
        self._under_way[by] = None
        rev = None
        try:
            rev = await ground.io(self._reach, self._write, value, have, force, later)
        finally:
            seen = self._under_way.pop(by)
            if rev is None and seen is not None:
                self.follow(seen)
        if rev == 0:
            self.slot.metrics.conflicts.inc()
            present = self.slot.copy()
            raise errors.stale(self.slot.label, have, present._moat_rev, candidate, present)
        return self._installed(candidate, by, rev, later)

    def _installed(self, candidate: StateModel, by: str, rev: int, later: bool) -> int:
        slot = self.slot
        with slot.mutex:
            if self.is_plain or rev > slot.rev:
                slot.install(candidate, rev, later=later)
                self._by = by
        if not later:
            slot.outgoing.go_on()
        return rev

    async def _write(self, value: dict[str, Any], have: int, force: bool, fenced: bool) -> int:
        """The revision of what was written; 0: others were quicker, and theirs was taken."""
        try:
            return await self._write_once(value, have, force, fenced)
        except kv_errors.Conflict:
            await self.refresh()
            return 0
        except kv_errors.StaleFence:
            if self._lock is not None:
                self._lock.doubt()
            raise
        except kv_errors.Disconnected as exc:
            raise detached(exc) from exc
        except kv_errors.Unknown as exc:
            if self.is_plain:
                raise
            return await self._find_out(value, have, force, fenced, exc)

    async def _write_once(self, value: dict[str, Any], have: int, force: bool, fenced: bool) -> int:
        if self.is_plain:
            return (await self._client.set(self.path, value)).rev
        lock = self._lock
        assert lock is not None
        written = await self._client.set(
            self.path,
            value,
            expect=None if force else have,
            fence=lock.guard if fenced else None,
            strict=True,
        )
        return written.rev

    async def _find_out(
        self,
        value: dict[str, Any],
        have: int,
        force: bool,
        fenced: bool,
        unknown: kv_errors.Unknown,
    ) -> int:
        """What became of a write whose answer got lost; it is made once more if it did not happen.

        Both expect the same revision, so that at most one of them happens.
        """
        deadline = loops.Deadline(self._client.shared.link.request_timeout_s)
        while True:
            try:
                found = await self._client.get(self.path, strict=True)
            except kv_errors.Detached as exc:
                if not deadline.left_s:
                    raise unknown from exc
                await anyio.sleep(AGAIN_S)
                continue
            except (kv_errors.Disconnected, kv_errors.RequestTimeout) as exc:
                raise unknown from exc
            if found.rev != have:
                rev = await self._find_earlier(value, have, unknown)
                if rev or not force:
                    return rev
            try:
                return await self._write_once(value, have, force, fenced)
            except (kv_errors.Conflict, kv_errors.Disconnected):
                continue  # it was the first one after all, or somebody else; or again no answer
            except kv_errors.Unknown as exc:
                unknown = exc

    async def _find_earlier(
        self, value: dict[str, Any], have: int, unknown: kv_errors.Unknown
    ) -> int:
        """Its revision, if it happened; 0 if it surely did not. Takes the present state."""
        await self.refresh()
        kept = await self._client.history(self.path, limit=HISTORY)
        for each in kept:
            if "value" in each and _by_of(each.value) == value["by"]:
                return each.rev
        if have and all(each.rev > have for each in kept):
            raise unknown  # what came right after it is forgotten
        return 0


def _by_of(value: Any) -> object:
    """The commit that an entry's value is of; None if it is no model's."""
    return value.get("by") if isinstance(value, Mapping) else None


def detached(exc: kv_errors.MoatKvError) -> kv_errors.Detached:
    """What a user of models is told when there is no line."""
    return kv_errors.Detached(str(exc))
