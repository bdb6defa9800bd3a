"""Actions on sessions, groups and messages that are not stored."""

from __future__ import annotations

from moat_kv import codec, errors
from moat_kv.path import Path
from moat_kv.proto.messages import Request
from moat_kv.server import streams
from moat_kv.server.actions import INT, NUMBER, PATH, TEXT, Action, readable
from moat_kv.server.connection import Connection
from moat_kv.server.session import Session

#: What a member may say of itself, in bytes of msgpack.
INFO_LIMIT_BYTES = 16 * 1024
#: The length of a member's name, and of its role, in characters.
NAME_LIMIT = 200


def session_open(connection: Connection, request: Request) -> None:
    arguments = request.arguments
    session, secret = connection.server.sessions.open(
        connection, arguments.get("ttl_s"), arguments.get("grace_s")
    )
    fields = {
        "session": session.id,
        "secret": secret,
        "ttl_s": session.ttl_s,
        "grace_s": session.grace_s,
    }
    connection.reply(request.seq, fields)


def session_resume(connection: Connection, request: Request) -> None:
    server, seq = connection.server, request.seq
    id, secret = request.arguments["session"], request.arguments["secret"]

    def answer(session: Session) -> None:
        connection.reply(seq, {"ttl_s": session.ttl_s, "grace_s": session.grace_s})

    if id in server.sessions or not server.engine.shared:
        answer(server.sessions.resume(connection, id, secret))
        return

    async def work() -> None:
        answer(await server.estates.adopt(connection, id, secret))

    connection.run_later(seq, work)


def session_ping(connection: Connection, request: Request) -> None:
    connection.server.sessions.ping(connection, request.arguments["session"])
    connection.reply(request.seq, {})


def session_close(connection: Connection, request: Request) -> None:
    every = connection.server.sessions
    every.end(every.of(connection, request.arguments["session"]), "it was closed")
    connection.reply(request.seq, {})


def group_join(connection: Connection, request: Request) -> None:
    arguments = request.arguments
    session = connection.server.sessions.of(connection, arguments["session"])
    info = request.value if request.value is not None else codec.pack(None)
    if len(info) > INFO_LIMIT_BYTES:
        raise errors.BadArguments("group_join", f"the info has at most {INFO_LIMIT_BYTES} bytes")
    # It travels inside of a mapping.
    codec.check(info, codec.MAX_DEPTH - 1)
    name, role = arguments["name"], arguments.get("role", "member")
    for what, text in (("name", name), ("role", role)):
        if not 0 < len(text) <= NAME_LIMIT:
            reason = f"{what} has 1 to {NAME_LIMIT} characters"
            raise errors.BadArguments("group_join", reason)
    group, now = readable(arguments["group"]), connection.server.now()
    connection.server.groups.join(group, name, role, session.id, info, now=now)
    # Whoever is a member owns something: the session is to outlive a restart.
    connection.server.sessions.record(session)
    connection.reply(request.seq, {})


def group_leave(connection: Connection, request: Request) -> None:
    arguments = request.arguments
    connection.server.groups.leave(
        arguments["group"],
        arguments["name"],
        arguments.get("role", "member"),
        connection.sessions,
    )
    connection.reply(request.seq, {})


def group_watch(connection: Connection, request: Request) -> None:
    path, seq = readable(request.arguments["group"]), request.seq
    groups = connection.server.groups
    unwatch = groups.watch(path, lambda: connection.stream_ready(seq))
    _open(connection, seq, streams.StateStream(seq, lambda: groups.state(path), unwatch))


def _open(
    connection: Connection, seq: int, stream: streams.StateStream | streams.QueueStream
) -> None:
    try:
        connection.open_stream(seq, stream)
    except errors.MoatKvError:
        stream.close()
        raise


def send(connection: Connection, request: Request) -> None:
    """A message to whoever monitors its topic now."""
    if request.value is None:
        raise errors.BadArguments("send", "the value is missing")
    codec.check(request.value)
    connection.server.engine.send(readable(request.arguments["topic"]), request.value)
    connection.reply(request.seq, {})


def monitor(connection: Connection, request: Request) -> None:
    """Messages at a topic and below it, from now on."""
    wanted, seq = readable(request.arguments["topic"]), request.seq
    max_depth = request.arguments.get("max_depth", -1)
    if max_depth < -1:
        raise errors.BadArguments("monitor", "a max_depth of -1 is without limit")
    monitors = connection.server.store.monitors

    def deliver(topic: Path, data: bytes) -> None:
        if max_depth < 0 or len(topic) - len(wanted) <= max_depth:
            stream.put(topic, data)

    def forget() -> None:
        monitors.pop(deliver, None)

    stream = streams.QueueStream(seq, lambda: connection.stream_ready(seq), forget)
    monitors[deliver] = wanted
    _open(connection, seq, stream)


_SESSION = {"session": TEXT}
_MEMBER = {"group": PATH, "name": TEXT}

ACTIONS = (
    Action("session_open", "write", {}, {"ttl_s": NUMBER, "grace_s": NUMBER}, session_open),
    Action("session_resume", "write", {**_SESSION, "secret": TEXT}, {}, session_resume),
    Action("session_ping", "write", _SESSION, {}, session_ping),
    Action("session_close", "write", _SESSION, {}, session_close),
    Action("group_join", "write", {**_MEMBER, **_SESSION}, {"role": TEXT}, group_join),
    Action("group_leave", "write", _MEMBER, {"role": TEXT}, group_leave),
    Action("group_watch", "read", {"group": PATH}, {}, group_watch),
    Action("send", "write", {"topic": PATH}, {}, send),
    Action("monitor", "read", {"topic": PATH}, {"max_depth": INT}, monitor),
)
