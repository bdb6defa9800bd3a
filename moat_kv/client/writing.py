"""The calls of a client that write; a base of `client.Client`, which see.

A write is asked once: if it is not known whether it happened, that is what its caller is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moat_kv.client import reading, results, writes
from moat_kv.client.reading import Results
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.link import Link
    from moat_kv.client.shared import Shared
    from moat_kv.proto import messages


class WriteCalls:
    """Writing entries, one or several at once."""

    _link: Link
    shared: Shared
    binding: writes.Binding

    async def set(
        self,
        path: Path,
        value: Any,
        *,
        chain: writes.ChainLike = NotGiven,
        expect: int | None = None,
        idem: bool = False,
        guard: writes.Guard | None = None,
        fence: writes.Guard | None = None,
        session: writes.SessionLike | None = None,
        ttl_s: float | None = None,
        strict: bool = False,
    ) -> results.Result:
        """Write one entry; returns when that is durable. The result has `rev`, `at`, `id`, `chain`.

        `expect`: the revision that the entry must have, 0: it must not exist (else Conflict).
        `chain`: the same, with the token of an earlier result, also of one that found nothing:
        that token is None, and then the entry must not exist. Not given: whatever is there.
        `idem`: no new revision if the value is the same. `guard`: (path, rev), only while that
        other entry has that revision (else GuardFailed). `session`: delete the entry when the
        session ends (SessionExpired if it has). `ttl_s`: delete it after so many seconds.
        `strict`: only with the agreement of the network (else Detached).
        """
        if type(path) is not Path:
            writes.check_path(path)
        link_ = self._link
        arguments = writes.options_of(
            path,
            link_.server.epoch,
            self.binding,
            chain=chain,
            expect=expect,
            idem=idem,
            guard=guard,
            fence=fence,
            session=session,
            ttl_s=ttl_s,
            strict=strict,
        )
        arguments["path"] = path
        reply = await link_.call("set", arguments, writes.packed(value))
        return self._written(reply)

    async def delete(
        self,
        path: Path,
        *,
        chain: writes.ChainLike = NotGiven,
        expect: int | None = None,
        guard: writes.Guard | None = None,
        fence: writes.Guard | None = None,
        session: writes.SessionLike | None = None,
        strict: bool = False,
    ) -> results.Result:
        """Delete one entry; its children stay. Options as for `set`.

        The result's `rev` is that of the deletion, 0 if there has never been anything; `deleted`
        says whether there was something to delete.
        """
        writes.check_path(path)
        arguments = writes.options_of(
            path,
            self._link.server.epoch,
            self.binding,
            chain=chain,
            expect=expect,
            guard=guard,
            fence=fence,
            session=session,
            strict=strict,
        )
        arguments["path"] = path
        return self._written(await self._link.call("delete", arguments), deleted=True)

    def _written(self, reply: messages.Reply, *, deleted: bool = False) -> results.Result:
        link_ = self._link
        result = results.result_of(
            reply.fields, reply.value, None if deleted else link_.server.epoch
        )
        if result.rev > link_.seen:
            link_.seen = result.rev
        if result.pending:
            self.shared.losses.note(result.id)
        return result

    async def delete_tree(self, path: Path, *, min_depth: int = 0, max_depth: int = -1) -> int:
        """Delete all entries at and below a path that are there now; returns how many.

        Up to 1,000 at once, all or nothing; more in several such groups. A million takes half a
        minute; no time limit applies while the line lives.
        """
        arguments = reading.subtree(path, min_depth, max_depth)
        if self.binding.fence is not None:
            arguments["fence"] = list(self.binding.fence)
        reply = await self._link.call("delete_tree", arguments)
        self._link.saw(reply.fields["rev"])
        count: int = reply.fields["count"]
        return count

    def op_set(self, path: Path, value: Any, **options: Any) -> writes.WriteOp:
        """A write for `batch`. Options as for `set`."""
        writes.check_path(path)
        made = writes.options_of(path, self._link.server.epoch, self.binding, **options)
        return writes.WriteOp(path=path, value=writes.packed(value), options=made)

    def op_delete(self, path: Path, **options: Any) -> writes.WriteOp:
        """A deletion for `batch`. Options as for `delete`."""
        writes.check_path(path)
        made = writes.options_of(path, self._link.server.epoch, self.binding, **options)
        return writes.WriteOp(path=path, value=None, options=made)

    async def batch(self, ops: Sequence[writes.WriteOp]) -> Results:
        """Several writes, all or nothing, each path once; results in the same order.

        Raises BatchTooLarge above 1,000, where each entry that guards them counts (a job's claim is
        one), and what refuses any one of them.
        """
        arguments = {"writes": [[op.path, op.value, op.options] for op in ops]}
        reply = await self._link.call("batch", arguments)
        epoch = self._link.server.epoch
        written = []
        for op, (rev, at, id_) in zip(ops, reply.fields["rows"], strict=True):
            result = results.Result(rev, epoch if op.value is not None else None)
            result.path, result.at, result.id = op.path, at, id_
            self._link.saw(rev)
            written.append(result)
        return written

    async def patch(
        self,
        path: Path,
        op: str,
        operand: Any,
        *,
        fence: writes.Guard | None = None,
        session: writes.SessionLike | None = None,
    ) -> results.Result:
        """Have the server compute a new value from the present one; the result has it.

        `op`: `add` a number, `append` to a list, `union` into a list as a set, `merge` a mapping.
        Raises CannotPatch if the present value is of another type.
        """
        writes.check_path(path)
        arguments = writes.options_of(
            path, self._link.server.epoch, self.binding, fence=fence, session=session
        )
        arguments |= {"path": path, "op": op}
        return self._written(await self._link.call("patch", arguments, writes.packed(operand)))
