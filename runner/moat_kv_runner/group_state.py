"""Which state a group is in, from what is seen of it. Pure; `serving` asks on each change."""

from __future__ import annotations

from collections.abc import Collection

from moat_kv_runner import messages


def judge(
    members: Collection[str] | None, *, own_name: str, nodes: int | None
) -> messages.ActorState:
    """The group's state as a message, whose `msg` carries the members seen and N.

    `members` are the names that serve the group, of any kind, or None while the group cannot be
    seen. `nodes` is N, from 1; None or 0 if nobody said. This runner counts itself, seen or not.

    Broken first; else complete if N is met (N = 1 alone too); else detached if alone; else partial.
    Without N alone is detached, more is complete.
    """
    if members is None:
        return messages.BrokenState(messages.GroupSeen(members=(), nodes=nodes or None))
    names = tuple(sorted({*members, own_name}))
    seen = messages.GroupSeen(members=names, nodes=nodes or None)
    alone = len(names) == 1
    if len(names) >= nodes if nodes else not alone:
        return messages.CompleteState(seen)
    return messages.DetachedState(seen) if alone else messages.PartialState(seen)
