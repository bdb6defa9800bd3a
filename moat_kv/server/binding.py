"""A line that acts for one claim alone: the server guards whatever it writes.

For processes that work under somebody else's claim, such as a runner's jobs. Who binds a line shows
that it knows the claim, by the token in the claim's value; from then on each write of the line
carries the claim as its fence, whatever else it says, and is refused when that has passed on. A
line is bound once and for good. A new line has to be bound anew; one that comes too
late, with a claim that has passed on, is bound to that nevertheless: it can read, and never write.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from moat_kv import codec, errors
from moat_kv.proto.messages import Request
from moat_kv.server import writes
from moat_kv.server.actions import LIST, TEXT, Action
from moat_kv.server.connection import Connection

_NAME = "bind"


def bind(connection: Connection, request: Request) -> None:
    """Guard all further writes of this line."""
    given, token = request.arguments["fence"], request.arguments["token"]
    fence = writes.guard_of(_NAME, "fence", given)
    head = connection.server.store.tree.head(fence.path)
    have = 0 if head is None or head.value is None else head.rev
    if connection.fence not in (None, fence):
        raise errors.BadArguments(_NAME, "this line is bound to another claim")
    if head is None or head.value is None or have != fence.rev:
        connection.fence = fence
        raise errors.StaleFence(str(fence.path), fence.rev, have)
    value = codec.unpack(head.value)
    known = value.get("token") if isinstance(value, Mapping) else None
    if not isinstance(known, str) or not hmac.compare_digest(known.encode(), token.encode()):
        raise errors.BadArguments(_NAME, "the token is not that of the claim")
    connection.fence = fence
    connection.reply(request.seq, {})


ACTIONS = (Action(_NAME, "write", {"fence": LIST, "token": TEXT}, {}, bind),)
