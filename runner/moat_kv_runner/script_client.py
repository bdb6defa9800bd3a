"""`_client`, as a run has it: its writes carry the claim's fence, and wait out an outage.

`running` makes one for each run; everything that the script writes, through `_self` and mirrors
too, goes through it. A write that never left waits for the line and is sent then. One that may have
happened is settled if it sets or deletes an entry whatever is there: what was written to the entry
since tells whether it did. Everything else that may have happened raises Unknown, because doing it
twice could be wrong. A server that is out of touch with its network is waited for likewise. All
waiting ends with the runner's session, on which the claim hangs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from moat_kv import codec, errors
from moat_kv.client import claiming, results, writes
from moat_kv.client.client import Client
from moat_kv.client.reading import Results
from moat_kv.client.shared import Shared
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv.proto.messages import Reply
from moat_kv_runner import messages

_T = TypeVar("_T")

#: So many states of an entry are looked through for one that was written; fewer are kept.
_LIMIT = 100
#: With one of these a write depends on what is there.
_CONDITIONS = ("chain", "expect", "guard")


class Hangs(Protocol):
    """What is needed of the session on which a run hangs."""

    @property
    def lost(self) -> anyio.Event: ...
    @property
    def ended(self) -> bool: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LateBinding(writes.Binding):
    """Of a run that has no claim (yet): it carries nothing until it is given one, for good."""

    followers: list[LateBinding] = dataclasses.field(default_factory=list)

    def give(self, fence: writes.Guard) -> None:
        """From now on writes carry this claim."""
        object.__setattr__(self, "fence", fence)
        for each in self.followers:
            each.give(fence)

    def derived(self, session: writes.SessionLike | None) -> LateBinding:
        """The same for a view of the client."""
        made = LateBinding(fence=self.fence, session=session)
        self.followers.append(made)
        return made


class Fate:
    """What all views of a run's client share."""

    def __init__(self) -> None:
        #: Why the run has lost its job; its calls end with that.
        self.lost: str | None = None


class ScriptClient(Client):
    """See above. Raises LostClaim where the session ended while a call waited for the line."""

    def __init__(
        self,
        shared: Shared,
        binding: writes.Binding,
        *,
        session: Hangs,
        fate: Fate | None = None,
    ) -> None:
        super().__init__(shared, binding)
        self._session = session
        self._fate = fate or Fate()

    def give_claim(self, fence: writes.Guard) -> None:
        """A run that began without a claim has one now; all its further writes carry it."""
        if isinstance(self.binding, LateBinding):
            self.binding.give(fence)

    def lose(self, why: str) -> None:
        """The job is another runner's: every call from now on raises LostClaim."""
        self._fate.lost = why

    def bound(
        self, *, fence: writes.Guard | None = None, session: writes.SessionLike | None = None
    ) -> ScriptClient:
        binding = super().bound(fence=fence, session=session).binding
        if isinstance(self.binding, LateBinding) and fence is None:
            binding = self.binding.derived(binding.session)
        return ScriptClient(self.shared, binding, session=self._session, fate=self._fate)

    # Writes -------------------------------------------------------------------------------------

    async def set(self, path: Path, value: Any, **options: Any) -> results.Result:
        ask = super().set

        async def write(**more: Any) -> results.Result:
            return await self._sent(lambda: ask(path, value, **options, **more))

        if _is_conditional(options):
            return await write()
        return await self._settled(path, value, write)

    async def delete(self, path: Path, **options: Any) -> results.Result:
        ask = super().delete

        async def write(**more: Any) -> results.Result:
            return await self._sent(lambda: ask(path, **options, **more))

        if _is_conditional(options):
            return await write()
        return await self._settled(path, NotGiven, write)

    async def delete_tree(self, path: Path, **options: Any) -> int:
        ask = super().delete_tree
        return await self._sent(lambda: ask(path, **options))

    async def batch(self, ops: Sequence[writes.WriteOp]) -> Results:
        ask = super().batch
        return await self._sent(lambda: ask(ops))

    async def patch(self, path: Path, op: str, operand: Any, **options: Any) -> results.Result:
        ask = super().patch
        return await self._sent(lambda: ask(path, op, operand, **options))

    async def send(self, topic: Path, value: Any = NotGiven, *, raw: bytes | None = None) -> None:
        ask = super().send
        await self._sent(lambda: ask(topic, value, raw=raw))

    async def request(
        self,
        action: str,
        arguments: dict[str, Any],
        value: bytes | None = None,
        *,
        repeat: bool = False,
    ) -> Reply:
        ask = super().request
        return await self._sent(lambda: ask(action, arguments, value, repeat=repeat))

    # Over an outage -----------------------------------------------------------------------------

    async def _sent(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Ask once there is a line; what never left has not happened, so it is asked again.

        Nor has what a server refused that is out of touch with its network. What carries a claim
        waits for that, too: the loss of a leader takes some seconds.
        """
        wait_s, longest_s = claiming.RETRY_S
        while True:
            if self._fate.lost is not None:
                raise messages.LostClaim(self._fate.lost)
            try:
                return await ask()
            except errors.Disconnected:
                await self._wait_for_line()
            except errors.Detached:
                if self.binding.fence is None:
                    raise
                await self._wait_for_touch(wait_s)
                wait_s = min(2 * wait_s, longest_s)

    async def _wait_for_touch(self, wait_s: float) -> None:
        """So long, or until the session ends; that raises LostClaim."""
        with anyio.move_on_after(wait_s):
            await self._session.lost.wait()
        if self._session.ended:
            raise messages.LostClaim("the server was cut off for longer than the runner's session")

    async def _wait_for_line(self) -> None:
        """Until there is a line. Raises LostClaim if the session ends before."""
        session = self._session
        await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group() as tasks:

            async def give_up() -> None:
                await session.lost.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(give_up)
            while not self.connected:
                await claiming.line_change(self)
            tasks.cancel_scope.cancel()
        if session.ended:
            raise messages.LostClaim("the server was away for longer than the runner's session")

    async def _settled(
        self, path: Path, value: Any, write: Callable[..., Awaitable[results.Result]]
    ) -> results.Result:
        """A write of the value (NotGiven: a deletion), once, though an answer may be lost.

        Whatever this client has sent gets a revision above all that it had seen before.
        """
        seen, epoch = self._link.seen, self.server.epoch
        condition: dict[str, Any] = {}
        lost: errors.MoatKvError
        while True:
            try:
                return await write(**condition)
            except errors.Conflict:
                pass  # written since the last look
            except errors.Unknown as exc:
                if not exc.line_broke:
                    raise  # it may still happen
                lost = exc
                await self._wait_for_line()
            rows = await self.history(path, limit=_LIMIT)
            newer = [row for row in rows if row.rev > seen]
            for row in newer:
                if _is_same(row, value) and self.server.epoch == epoch:
                    return _as_written(row, epoch)
            if self.server.epoch != epoch or (newer and len(newer) == len(rows)):
                raise lost  # what is kept does not reach back to the write
            # It had not happened. On this condition it does not either if it comes first after all.
            present = rows[0].rev if rows and "value" in rows[0] else 0
            condition = {"expect": present} if present or value is not NotGiven else {}


def _is_conditional(options: dict[str, Any]) -> bool:
    return any(options.get(name, NotGiven) not in (None, NotGiven) for name in _CONDITIONS) or (
        options.get("chain", NotGiven) is None
    )


def _is_same(row: results.Result, value: Any) -> bool:
    if value is NotGiven or "value" not in row:
        return (value is NotGiven) == ("value" not in row)
    return codec.pack(row.value) == codec.pack(value)


def _as_written(row: results.Result, epoch: str) -> results.Result:
    """What the lost answer said."""
    is_deletion = "value" not in row
    result = results.Result(row.rev, None if is_deletion else epoch)
    result.at, result.id = row.at, row.id
    if is_deletion:
        result.deleted = True
    return result
