"""How long things take where several servers share a tree, in seconds.

A client's session is safe by these: its server gives it up `lease_s` after it sent its last
renewal, nobody else ends it before `lease_s` and its time to live have passed after that was seen.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """The defaults on a network. Tests have shorter ones."""

    #: How long a server's lease holds after a renewal, and how often it is renewed. NATS stores
    #: nothing for up to 10 s when the leader of the stream has been killed (measured), which comes
    #: on top of a renewal's age; with a lease of 10 s all sessions of the network would end then.
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
