"""The course of one update: from its first reference to its execution.

An update belongs to a resource, and its process holds that while the update goes on. When its
session is over, it waits in the tree if others still hold the resource; else, or if its time is up,
it takes all that waits there, is written down as to be executed, and is executed. Each update has
one `Course`, which async and blocking ones go on their own ground (`ground`); what is read and
written on the way is in `ending`, the user's part are the update's own methods.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moat_kv import codec, errors
from moat_kv.client import writes
from moat_kv.coord import ending, recovery, resource, stock

if TYPE_CHECKING:
    from moat_kv.coord.aio.lock import Lock
    from moat_kv.coord.aio.process import Process
    from moat_kv.coord.ground import Ground
    from moat_kv.coord.holding import Holding
    from moat_kv.coord.updating import UpdateLogic
    from moat_kv.path import Path

#: So often what waits is read anew because it changed before it could be taken.
TRIES = 20

logger = logging.getLogger(__name__)


class Course:
    """What is known of one update beside what its user sees."""

    def __init__(
        self, update: UpdateLogic, process: Process, on: Ground, *, hard_s: float, soft_s: float
    ) -> None:
        self._update = update
        self._on = on
        self._process = process
        self._client = process.client
        self._mutex = on.mutex()
        self._holding: Holding | None = None
        # Its part in the tree: the key, its revision there (0: none), and the state it has there.
        self._key = ""
        self._rev = 0
        self._kept: bytes | None = None
        # A cache could not take it.
        self._refused = False
        #: How often its end failed.
        self.tries = 0
        self._soft_s = soft_s
        now = time.monotonic()
        self._hard_at = now + hard_s
        self._soft_at = now + soft_s
        self.forced = False
        #: It waits for others, or was executed, or its state has gone to another update.
        self.over = False
        #: What is to be executed, once that is settled.
        self.todo: stock.Todo | None = None

    @property
    def name(self) -> str:
        return self._update.resource_id

    @property
    def is_expired(self) -> bool:
        """Its time is up: it is not to wait for others."""
        return self.forced or time.monotonic() >= min(self._hard_at, self._soft_at)

    def take_up(self, part: stock.Part | None, todo: stock.Todo | None) -> None:
        """Go on where another process was: its update was made from this part, or is to be done."""
        self.todo = todo
        if part is not None:
            self._key, self._rev = part.key, part.rev
        self.forced = True

    # While it goes on ---------------------------------------------------------------------------

    def join(self) -> bool:
        """Hold the resource if the process does so already; needs no request."""
        if self._holding is None:
            self._holding = self._process.holdings.join(self.name)
        return self._holding is not None

    async def hold(self) -> None:
        """Hold the resource. Raises Detached, Disconnected."""
        if not self.join():
            self._holding = await self._on.io(self._process.holdings.enter, self.name)

    async def begin(self) -> None:
        """Hold the resource, and with `init_cache` keep what there is of the update."""
        async with self._mutex:
            await self._begin()

    async def begin_in_cache(self) -> None:
        """`begin`; if that fails, those who wait to be merged into it are not."""
        async with self._mutex:
            self._refused = False
            try:
                await self._begin()
            except BaseException:
                self._refused = True
                self.let_go()
                raise

    def let_go(self) -> None:
        """A cache has not taken it: hold the resource no more, unless it is in the tree itself."""
        if self._holding is not None and not self._rev:
            holding, self._holding = self._holding, None
            self._process.holdings.leave_soon(holding)

    async def _begin(self) -> None:
        await self.hold()
        if self._update.init_cache and not self._rev and not self.over:
            await self._keep(None)

    async def refresh(self, other: UpdateLogic) -> bool:
        """Merge another update into this one; False, and nothing done, if this one is over, or the
        cache that it was to begin in could not take it.

        With `init_cache` it is in the tree then. If it cannot be brought there, nothing was merged.
        Raises ValueError if they are not of one resource and kind.
        """
        mine = self._update
        if other.resource_id != mine.resource_id or other.kind != mine.kind:
            raise ValueError(
                f"an update of {other.resource_id} ({other.kind}) cannot be merged into one of"
                f" {mine.resource_id} ({mine.kind})"
            )
        async with self._mutex:
            if self.over or self._refused or self.todo is not None:
                return False
            if self._update.init_cache:
                await self.hold()
            await self._on.user(self._update.merge, other)
            if self._update.init_cache:
                await self._keep(other)
            self._soft_at = time.monotonic() + self._soft_s
        await other._course.absorbed()
        return True

    async def absorbed(self) -> None:
        """Its state has gone to another update of the same resource."""
        async with self._mutex:
            self.over = True
            holding, self._holding = self._holding, None
            if holding is not None and self._process.holdings.leave(holding):
                await self._on.io(self._client.delete, holding.path, strict=True)
            if self._rev:
                place = self._base / resource.KEPT / self._key
                await self._on.io(self._client.delete, place, strict=True)

    async def _keep(self, other: UpdateLogic | None) -> None:
        """Write the state as it is, into which `other` was just merged.

        If the part that was there was taken over (this process was taken for dead), the state goes
        on from nothing but `other`.
        """
        assert self._holding is not None
        try:
            while not await self._store(self._holding.key):
                logger.warning("what %s had kept was taken over by another process", self.name)
                await self._begin_anew()
                if other is not None:
                    await self._on.user(self._update.merge, other)
        except BaseException:
            if self._kept is not None:
                self._update._restore(codec.unpack(self._kept))
            raise

    async def _begin_anew(self) -> None:
        """What it was until now has been taken over by another process."""
        self._key, self._rev = "", 0
        await self._update._clear()
        self._kept = codec.pack(self._update._state())

    async def _store(
        self, reference: str | None, others: Sequence[writes.WriteOp] = (), *, mapped: bool = False
    ) -> bool:
        """Put the state into the tree as this update's part; False if that was taken over.

        `reference`: the key of the one under which it goes on. `others`: what is written with it.
        """
        if not self._key:
            self._key = self._process.new_key()
        state = self._update._state()
        value = stock.part_value(self._update.kind, state, reference, secrets.token_hex(8))
        if mapped:
            kept = (self._place, self._rev) if self._rev else None
            rev = await self._on.io(
                ending.keep_mapped, self._client, self._base, self._key, value, kept, others
            )
        else:
            rev = await self._on.io(
                ending.keep, self._client, self._place, value, self._rev, others
            )
        if rev is None:
            return False
        self._rev = rev
        if self._update.init_cache:
            self._kept = codec.pack(state)
        return True

    @property
    def _base(self) -> Path:
        return self._process.path_of(self.name)

    @property
    def _place(self) -> Path:
        """Where its part is."""
        return self._base / resource.KEPT / self._key

    # Its end ------------------------------------------------------------------------------------

    async def end(self, block: bool) -> bool:
        """Whether it was executed; else it waits in the tree for others, or was over before.

        Raises what `execute` raises; it is kept then, and the next call tries again. Raises
        AlreadyLocked, Detached, Disconnected, StaleFence; nothing has changed then.
        """
        async with self._mutex:
            if self.over:
                return False
            if self.todo is None:
                await self.hold()
                beside = ending.Beside.ALONE
                if not self.is_expired:
                    beside = await self._cache_beside()
                if beside is ending.Beside.CACHED:
                    return False
                if beside is ending.Beside.LEFT:
                    await recovery.settle_left(self._process, self._on, self.name)
                    return False
            return await self._settle(block)

    async def _cache_beside(self) -> ending.Beside:
        """Leave the state to the others who hold the resource, without a lock."""
        holding = self._holding
        assert holding is not None
        last_here = self._process.holdings.leave(holding)
        try:
            found = await self._on.io(ending.read, self._client, holding.base)
            if last_here and not found.others({holding.key}):
                self._process.holdings.rejoin(holding)
                return ending.Beside.ALONE
            if len(found.ended()) >= ending.CROWD:
                self._process.holdings.rejoin(holding)
                return ending.Beside.CROWDED
            others = [self._client.op_delete(holding.path)] if last_here else []
            mapped = self._update.conflict_free and last_here
            if not await self._store(None, others, mapped=mapped) and others:
                # All of it was taken over already, so there is nothing to leave but the reference.
                await self._on.io(ending.write, self._client, others)
        except BaseException:
            self._process.holdings.rejoin(holding)
            raise
        self._holding, self.over = None, True
        if last_here:
            # Of several that leave at the same time the last one sees that nobody is left.
            found = await self._on.io(ending.read, self._client, holding.base)
            if not found.references:
                return ending.Beside.LEFT
        return ending.Beside.CACHED

    async def _settle(self, block: bool) -> bool:
        """Under the lock: take what waits, write down what is to be executed, execute it."""
        lock = self._process.lock(self.name, block)
        await self._on.io(lock.acquire)
        executed = False
        try:
            if self.todo is None:
                await self._gather_until_it_holds(lock)
            elif not await self._on.io(
                ending.is_to_be_done, self._client, self._base, self.todo.key
            ):
                logger.info("%s was executed by another process", self.name)
                self.over, self.todo = True, None
            if self.todo is not None:
                await self._execute(self.todo)
                executed = True
        finally:
            await self._on.io(lock.release)
        # Who has left since then saw this one's reference still, and leaves the rest to it.
        found = await self._on.io(ending.read, self._client, self._base)
        if not found.references and found.parts:
            await recovery.settle_left(self._process, self._on, self.name)
        return executed

    async def settle_alone(self, lock: Lock) -> None:
        """For one that nobody goes on with: take what waits, and execute it, under that lock."""
        async with self._mutex:
            if self.todo is None:
                await self._gather_until_it_holds(lock)
            if self.todo is not None:
                await self._execute(self.todo)

    async def _gather_until_it_holds(self, lock: Lock) -> None:
        for tries_left in reversed(range(TRIES)):
            try:
                await self._gather(lock)
                return
            except errors.Conflict:
                # A part changed meanwhile: its owner was taken for dead, and is not.
                if not tries_left:
                    raise

    async def _gather(self, lock: Lock) -> None:
        """Merge what waits into this one, and have one entry in the place of it all.

        That is what is to be executed, or, if others hold the resource now, one part for them.
        """
        holding = self._holding
        before = codec.pack(self._update._state())
        last_here = holding is not None and self._process.holdings.leave(holding)
        try:
            found = await self._on.io(ending.read, self._client, self._base)
            taken = [each for each in found.ended() if each.kind == self._update.kind]
            if self._rev and holding is None:
                # Taken up from another process, which may be alive and have gone on since.
                taken.sort(key=lambda part: part.key != self._key)
                if not taken or taken[0].key != self._key:
                    self.over = True  # somebody else has taken it up, or its owner has it again
                    return
                self._update._restore(taken[0].state)
            elif self._rev and not any(part.key == self._key for part in found.parts):
                await self._begin_anew()
                before = codec.pack(self._update._state())
            del taken[ending.TAKEN_LIMIT :]
            for part in taken:
                if part.key != self._key:
                    await self._on.user(self._update.merge, self._update._sibling(part.state))
            own = {holding.key} if last_here and holding is not None else set()
            lonely = not found.others(own)
            ops = ending.removals(self._client, self._base, found, taken)
            ops += self._own_removals(taken)
            if holding is not None and last_here:
                ops.append(self._client.op_delete(holding.path))
            if lonely and found.times_rev:
                ops.append(self._client.op_delete(self._base / resource.TIMES))
            await self._replace(lock, ops, to_be_done=lonely or self.is_expired)
        except BaseException:
            self._update._restore(codec.unpack(before))
            if holding is not None:
                self._process.holdings.rejoin(holding)
            raise
        self._holding = None

    def _own_removals(self, taken: Sequence[stock.Part]) -> list[writes.WriteOp]:
        """The end of the part of its own that was kept, unless it is among those taken."""
        if not self._rev or any(part.key == self._key for part in taken):
            return []
        return [self._client.op_delete(self._place, expect=self._rev)]

    async def _replace(
        self, lock: Lock, ops: Sequence[writes.WriteOp], *, to_be_done: bool
    ) -> None:
        state, kind = self._update._state(), self._update.kind
        serial = secrets.token_hex(8)
        todo: stock.Todo | None
        if to_be_done:
            todo = stock.Todo(key=serial, rev=0, kind=kind, state=state, process=self._process.id)
            place, value = self._base / resource.TODO / serial, todo.value
        else:
            todo, key = None, self._process.new_key()
            place = self._base / resource.KEPT / key
            value = stock.part_value(kind, state, None, serial)
        new = self._client.op_set(place, value, expect=0, fence=lock.guard)
        await self._on.io(ending.replace, self._client, new, serial, ops)
        self.todo, self.over = todo, not to_be_done

    async def _execute(self, todo: stock.Todo) -> None:
        self._update.execution_id = todo.key
        try:
            await self._on.user(self._update.execute)
        except Exception as exc:
            self.todo = dataclasses.replace(
                todo,
                process=self._process.id,
                tries=todo.tries + 1,
                reason=f"{type(exc).__name__}: {exc}",
            )
            self._process.unsettled.add(self)
            await self._on.io(ending.note_failure, self._client, self._base, self.todo)
            raise
        self.todo, self.over = None, True
        await self._on.io(ending.finish, self._client, self._base, todo.key)
