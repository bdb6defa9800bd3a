"""Who runs a job while the network is parted, and who goes on with it afterwards. Pure.

`apart` asks, with what it sees. A part is a server that has been cut off for as long as claims
hold, with its own clients: there nobody can take a claim, and nobody can know whether one holds
elsewhere. A job's `on_split` says what it does there; once the network is whole again, the group's
`reconcile` picks one of several runs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: What a job may do in a part: run once there, never without a claim, only where it was before.
POLICIES = ("each", "fenced", "stick")
#: Which of several runs goes on: that which began first, or last, or that on the idlest node.
RULES = ("oldest", "newest", "lowest_load")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A run of a job of which there should be one."""

    name: str
    """The runner's."""
    since: float
    """When it began, in seconds since 1970."""
    load: float = 0.0
    """Of its node, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a runner sees of a job in its part."""

    own_name: str
    policy: str
    order: Sequence[str] = ()
    """The members of this part that may run it, as `placing` has them."""
    running: Collection[Contender] = ()
    """Those of this part that run it without a claim, this runner too."""
    holder: str | None = None
    """The runner that had it when the network parted; may be in another part, or dead."""


def turn(part: Part) -> int | None:
    """This runner's place among those that would begin the job in their part; None: it may not.

    With `each` the one that had it before comes first, if it is here.
    """
    own = part.own_name
    if part.policy == "fenced" or part.running or own not in part.order:
        return None
    if part.policy == "stick":
        return 0 if part.holder == own else None
    line = sorted(part.order, key=lambda name: name != part.holder)
    return line.index(own)


def loses_to(part: Part, rule: str) -> str | None:
    """The other runner of this part that goes on with a job that both run; None: this one does."""
    won = winner(rule, part.running) if part.running else part.own_name
    return won if won != part.own_name else None


def winner(rule: str, contenders: Collection[Contender]) -> str:
    """Who goes on. The same for whoever asks; where the rule knows no difference, the oldest."""

    def rank(each: Contender) -> tuple[float, float, str]:
        if rule == "lowest_load":
            return (each.load, each.since, each.name)
        return (-each.since if rule == "newest" else each.since, 0.0, each.name)

    return min(contenders, key=rank).name


def waits_for(
    *, own_name: str, policy: str, sticks_to: str | None, rivals: Collection[str]
) -> str | None:
    """In touch, and with the claim free: the runner to which it is left; None: to nobody.

    `sticks_to`: the one that had it under `stick` and has not let go; `rivals`: those that have
    run it in another part and still do.
    """
    if policy == "stick" and sticks_to not in (None, own_name):
        return sticks_to
    others = sorted(name for name in rivals if name != own_name)
    return others[0] if others and own_name not in rivals else None
