"""Writes, made of what a client asks for, with everything that guards them.

Used by the write actions and by patches. Nothing is submitted here, but for a session's record
before its first write.
"""

from __future__ import annotations

from typing import Any

from moat_kv import errors
from moat_kv.entry import Guard, Write
from moat_kv.path import Path
from moat_kv.server.actions import BOOL, INT, LIST, NUMBER, TEXT, readable
from moat_kv.server.connection import Connection

OPTIONS = {
    "expect": INT,
    "guard": LIST,
    "fence": LIST,
    "session": TEXT,
    "strict": BOOL,
}
SET_OPTIONS = {**OPTIONS, "idem": BOOL, "ttl_s": NUMBER}
#: A time to live is at most this, in seconds: ten years.
TTL_LIMIT_S = 10 * 366 * 86_400


def make_write(
    connection: Connection, action: str, path: Path, value: bytes | None, options: dict[str, Any]
) -> Write:
    """The write that a client asks for, with its guards. Raises BadPath, BadArguments, ..."""
    server = connection.server
    if path.keys and path[0] is None:
        readable(path)
    write = Write(path, value, origin=server.origin, tick=server.next_tick())
    # An action's arguments hold the path, too; most writes have no option at all.
    if options and (len(options) > 1 or "path" not in options):
        _add_options(connection, action, write, options)
    fence = connection.fence
    if fence is not None and fence not in write.guards:
        write.guards = (fence, *write.guards)
    return write


def _add_options(
    connection: Connection, action: str, write: Write, options: dict[str, Any]
) -> None:
    guards = [
        guard_of(action, kind, options[kind]) for kind in ("guard", "fence") if kind in options
    ]
    session = options.get("session")
    if session is not None:
        guards.append(connection.server.sessions.guard(connection, session))
        write.session = session
    write.guards = tuple(guards)
    write.idem = options.get("idem", False)
    write.strict = options.get("strict", False)
    expect = options.get("expect")
    if expect is not None:
        if expect < 0:
            raise errors.BadArguments(action, "expect is a revision, or 0 for none")
        write.expect = expect
    ttl_s = options.get("ttl_s")
    if ttl_s is not None:
        if not 0 < ttl_s <= TTL_LIMIT_S:
            raise errors.BadArguments(action, f"ttl_s is above 0 and at most {TTL_LIMIT_S}")
        write.expires_at = connection.server.now() + ttl_s


def guard_of(action: str, kind: str, given: list[Any]) -> Guard:
    """A guard, as it travels: `[path, revision]`. Raises BadPath, BadArguments."""
    if len(given) != 2 or type(given[0]) is not Path or type(given[1]) is not int or given[1] < 1:
        raise errors.BadArguments(action, f"{kind} is [path, revision]")
    return Guard(readable(given[0]), given[1], kind)
