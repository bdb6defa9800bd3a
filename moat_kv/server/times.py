"""How long things take where several servers share a tree, in seconds.

A client's session is safe by these: its server gives it up `lease_s` after it sent its last
renewal, nobody else ends it before `lease_s` and its time to live have passed after that was seen.
"""

from __future__ import annotations

import dataclasses

from moat_kv import errors

#: For so long NATS may acknowledge nothing when the leader of the stream was killed: 4 to 9 s were
#: measured.
LEADER_LOSS_S = 10.0
#: Its sessions outlive a dead server by as much, and nobody else can have what they own.
LEASE_MOST_S = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """The defaults on a network. Tests have shorter ones."""

    #: How long a server's lease holds after a renewal, and how often it is renewed. The loss of a
    #: leader comes on top of a renewal's age; with a lease of 10 s all sessions of the network
    #: would end then.
    lease_s: float = 20.0
    renew_s: float = 3.0
    #: What a client gets that asks for nothing else.
    ttl_s: float = 30.0
    grace_s: float = 10.0
    #: How often a server tells that it is there, and after how much silence its members are not.
    presence_s: float = 1.0
    silent_s: float = 5.0
    #: How long what has ended is left to the server whose turn it is, before any other deletes it:
    #: entries whose time is over, entries of a session that has ended.
    leave_s: float = 5.0
    #: How often sessions that are nobody's are looked for.
    sweep_s: float = 0.5


DEFAULT_TIMES = Times()


def check(times: Times, *, silence_s: float = 0.0) -> None:
    """Whether they go together. `silence_s`: for so long the log may acknowledge nothing.

    Raises BadConfig, which names the two that do not.
    """
    lease_s, renew_s = times.lease_s, times.renew_s
    if not 0 < renew_s <= lease_s / 3:
        _refuse("renew_s", renew_s, "lease_s", lease_s, "at most a third of it, as two may be late")
    if lease_s > LEASE_MOST_S:
        raise errors.BadConfig("server.lease_s", f"at most {LEASE_MOST_S:g} s")
    if lease_s < silence_s + renew_s:
        why = f"above it by the {silence_s:g} s for which nothing may be acknowledged, or more"
        _refuse("lease_s", lease_s, "renew_s", renew_s, why)
    if not 0 <= times.grace_s <= times.ttl_s:
        _refuse("grace_s", times.grace_s, "ttl_s", times.ttl_s, "at most that")
    if not 0 < times.presence_s <= times.silent_s / 2:
        _refuse("presence_s", times.presence_s, "silent_s", times.silent_s, "at most half of it")


def _refuse(name: str, value_s: float, other: str, other_s: float, rule: str) -> None:
    reason = f"{value_s:g} s does not go with server.{other}, {other_s:g} s: {rule}"
    raise errors.BadConfig(f"server.{name}", reason)
