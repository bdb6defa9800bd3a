"""Faults between a client and its server: `python -m tests.faults.client_faults --rounds 10`.

Each round goes through, with real processes:

- restart: the server is killed and started again while a client watches, mirrors, is in a session
  that owns an entry, and is a member of a group, and another one writes. Everything must go on by
  itself: what the watch told and what the mirror shows must be what is in the tree.
- frozen server (SIGSTOP, so that the lines stay half-open): requests must end with RequestTimeout
  or Unknown within their time, and all must go on when it thaws.
- frozen server, for longer than a session's time to live: it must not end a session whose signs of
  life waited in its sockets; a client of ours has given its own up by then, is told so, and nothing
  of it stays behind.
- frozen client, for longer than that: its session must be ended, others must see it go, and the
  client must be told when it thaws.
- long outage: a server that comes back after the grace finds that the client has given up.

Exit code 0 if all was so in each round, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from moat_kv import Client, NotGiven, P, Path, errors, open_client
from moat_kv.client.connection import SILENCE_S
from moat_kv.client.session import GIVE_UP
from tests.faults.client_watching import (
    DATA,
    GROUP,
    LIMIT_S,
    OWNED,
    Follower,
    Writer,
    has_value,
    member,
    until,
)
from tests.faults.serving import ServerProcess, served
from tests.line import connected

_ROOT = pathlib.Path(__file__).parents[2]
#: The time to live of sessions that end when something is frozen, and of those that others live by
#: meanwhile, in seconds: a busy machine may hold a process up for a second or two.
TTL_S = 4.0
#: A server that is frozen for so long has heard of nobody for longer than that, in seconds.
FROST_S = 5.0
#: The time to live of a session that a short frost of `SHORT_FROST_S` must not end, in seconds.
LONG_TTL_S, SHORT_FROST_S = 8.0, 1.0
#: Times of sessions that are to live over a restart, however long that takes, in seconds.
LASTING = {"ttl_s": 60.0, "grace_s": 60.0}


# Restart ----------------------------------------------------------------------------------------


async def restart(server: ServerProcess) -> str:
    """Everything that lasts longer than a request goes on after a restart."""
    follower, writing = Follower(), Writer()
    members: list[Any] = []

    async def watch_group(client: Client) -> None:
        async with client.watch_group(GROUP) as changes:
            async for state in changes:
                members.append(state)

    async with open_client(server.url) as client, open_client(server.url) as writer:
        async with client.mirror(DATA) as mirror, member(client, **LASTING) as session:
            client.task_group.start_soon(follower.follow, client)
            client.task_group.start_soon(watch_group, client)
            writer.task_group.start_soon(writing.write, writer)
            await until("writes", lambda: _more(lambda: writing.answered, 50))
            await server.kill()
            answered = writing.answered
            began = time.monotonic()
            await server.start()
            took_s = await _until_all_is_back(client, server, began)
            await until("writes go on", lambda: _more(lambda: writing.answered, answered + 50))
            writing.stopped = True
            await writing.ended.wait()
            async with open_client(server.url) as other:
                tree = {DATA + row.path: row.value async for row in other.get_tree(DATA)}
                await until("the watch", lambda: _same(lambda: follower.state, tree))
                await until("the mirror", lambda: _same(lambda: _shown(mirror), tree))
                assert not session.ended, "the session was lost"
                assert await has_value(other, OWNED), "the session's entry is gone"
                await until("the group", lambda: _same(lambda: list(members[-1] or ()), ["n1"]))
            assert None in members, "nobody was told that the group is not known"
    return f"back after {took_s:.2f} s, {follower.resets} resets"


async def _until_all_is_back(client: Client, server: ServerProcess, began: float) -> float:
    async def answers() -> bool:
        await client.ping()
        return client.connected

    await until("the line", answers)
    return time.monotonic() - began


async def _more(there: Callable[[], int], than: int) -> bool:
    return there() > than


async def _same(there: Callable[[], Any], wanted: Any) -> bool:
    return bool(there() == wanted)


def _shown(mirror: Any) -> dict[Path, Any]:
    entries = [mirror, *mirror.all_children]
    return {entry.absolute: entry.value for entry in entries if entry.value is not NotGiven}


# Frozen server ----------------------------------------------------------------------------------


async def frozen_server(server: ServerProcess) -> str:
    """Requests on a half-open line end in time, by name.

    Not `delete_tree`: it may take long, and ends when the line is given up for its silence.
    """
    limit_s = 0.5
    longest_s = 0.0
    ended: dict[str, str] = {}
    async with open_client(server.url, request_timeout_s=limit_s) as client:
        requests: dict[str, Callable[[], Awaitable[object]]] = {
            "get": lambda: client.get(DATA),
            "set": lambda: client.set(DATA, 1),
            "delete": lambda: client.delete(DATA / "x"),
            "batch": lambda: client.batch([client.op_set(DATA, 1)]),
            "patch": lambda: client.patch(DATA, "add", 1),
            "list": lambda: client.list(DATA),
            "history": lambda: client.history(DATA),
            "get_tree": lambda: _all_of(client),
            "state": lambda: client.state(),
            "ping": lambda: client.ping(),
            "send": lambda: client.send(DATA, 1),
        }

        async def request(name: str) -> None:
            nonlocal longest_s
            began = time.monotonic()
            try:
                with anyio.fail_after(LIMIT_S):
                    await requests[name]()
                ended[name] = "answered"
            except (errors.RequestTimeout, errors.Unknown) as exc:
                ended[name] = type(exc).__name__
            longest_s = max(longest_s, time.monotonic() - began)

        async with server.frozen():
            async with anyio.create_task_group() as tasks:
                for name in requests:
                    tasks.start_soon(request, name)
        reads = {"get", "list", "history", "get_tree", "state", "ping"}
        wrong = {
            name: how
            for name, how in ended.items()
            if how != ("RequestTimeout" if name in reads else "Unknown")
        }
        assert not wrong, f"requests to a frozen server ended so: {wrong}"

        async def is_written() -> bool:
            with contextlib.suppress(errors.RequestTimeout, errors.Unknown):
                await client.set(DATA / "frozen", 2)
                return bool((await client.get(DATA / "frozen")).value == 2)
            return False

        await until("the line", is_written)
    # Its silence would end the line only much later.
    assert longest_s < SILENCE_S - 2, f"a request took {longest_s:.2f} s"
    return f"{len(ended)} requests ended by name, the last after {longest_s:.2f} s of {limit_s:g}"


async def _all_of(client: Client) -> None:
    async for _ in client.get_tree(DATA):
        pass


async def long_frozen_server(server: ServerProcess) -> str:
    """A server ends no session for what it did not hear while it was frozen."""
    async with connected(server.url) as line, open_client(server.url) as client:
        async with member(client, ttl_s=TTL_S, grace_s=TTL_S) as session:
            opened = (await line.ask("session_open", ttl_s=TTL_S, grace_s=TTL_S)).fields["session"]
            await line.ask("set", 1, path=P("owned.other"), session=opened)
            async with server.frozen():
                # Signs of life that the server finds when it thaws; ours has given up by then.
                for _ in range(10):
                    await line.send("session_ping", session=opened)
                    await anyio.sleep(FROST_S / 10)
                with anyio.move_on_after(LIMIT_S):
                    await session.lost.wait()
                assert session.ended, "the client holds a session that it cannot know of"

            async def gone_while_the_other_lives() -> bool:
                await line.ask("session_ping", session=opened)
                return await _gone(client, OWNED)

            await until("the end of the entry", gone_while_the_other_lives)
            assert await has_value(client, P("owned.other")), "an entry of a live session is gone"
            await line.ask("session_close", session=opened)
        async with member(client, ttl_s=LONG_TTL_S, grace_s=LONG_TTL_S) as session:
            async with server.frozen():
                await anyio.sleep(SHORT_FROST_S)
            thawed = time.monotonic()

            async def is_known_to_live() -> bool:
                # By a sign of life that was sent after the frost, and was acknowledged.
                return session.ended or session.good_until > thawed + GIVE_UP * LONG_TTL_S

            await until("a sign of life", is_known_to_live)
            assert not session.ended, "a session ended after a short freeze"
            assert await has_value(client, OWNED)
    return f"no session ended in {FROST_S:g} s of frost with {TTL_S:g} s to live"


async def _gone(client: Client, path: Path) -> bool:
    return not await has_value(client, path)


# Frozen client ----------------------------------------------------------------------------------


async def be_frozen(url: str) -> None:
    """The process that is frozen: tells on stdout what its session came to."""
    async with open_client(url) as client:
        async with member(client, ttl_s=TTL_S, grace_s=TTL_S) as session:
            print("ready", flush=True)
            await session.lost.wait()
            try:
                await client.set(OWNED, "again", session=session)
            except errors.SessionExpired:
                print("told", flush=True)
            else:
                print("wrote", flush=True)


async def frozen_client(server: ServerProcess) -> str:
    """Who is not heard of for too long has lost its session, and is told."""
    command = [sys.executable, "-m", "tests.faults.client_faults", "--child", server.url]
    process = await anyio.open_process(command, cwd=_ROOT, stderr=None)
    members: list[Any] = []
    try:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        assert await lines.receive_until(b"\n", 100) == b"ready"
        async with open_client(server.url) as client:

            async def watch_group() -> None:
                async with client.watch_group(GROUP) as changes:
                    async for state in changes:
                        members.append(state)

            client.task_group.start_soon(watch_group)
            await until("the member", lambda: _same(lambda: members and list(members[-1]), ["n1"]))
            began = time.monotonic()
            process.send_signal(signal.SIGSTOP)
            await until("the end of the entry", lambda: _gone(client, OWNED))
            took_s = time.monotonic() - began
            await until("the end of the member", lambda: _same(lambda: list(members[-1]), []))
            process.send_signal(signal.SIGCONT)
            with anyio.fail_after(LIMIT_S):
                said = await lines.receive_until(b"\n", 100)
            assert said == b"told", f"the frozen client says {said!r}"
            assert not await has_value(client, OWNED), "something was written for a dead session"
    finally:
        process.kill()
        await process.wait()
        await process.aclose()
    # From the last sign of life, which may have been a third of that earlier, or more, and the
    # sweep.
    assert 0.25 * TTL_S < took_s < 2 * TTL_S, f"the session ended after {took_s:.2f} s"
    return f"session of {TTL_S:g} s ended after {took_s:.2f} s of frost, its client was told"


# Long outage ------------------------------------------------------------------------------------


async def long_outage(server: ServerProcess) -> str:
    """Down for longer than the grace: the client has given up before the server could."""
    grace_s = TTL_S / 8
    async with open_client(server.url) as client:
        async with member(client, ttl_s=TTL_S, grace_s=grace_s) as session:
            await server.kill()
            began = time.monotonic()
            with anyio.fail_after(LIMIT_S):
                await session.lost.wait()
            took_s = time.monotonic() - began
            await anyio.sleep(max(0.0, grace_s - took_s))
            await server.start()
            await until("the end of the entry", lambda: _gone(client, OWNED))
            async with member(client):
                assert await has_value(client, OWNED)
    # For its silence it would have done so a good while later: after `GIVE_UP` of its time to live,
    # less the third that the last sign of life may be old.
    assert took_s < 0.45 * TTL_S, f"the client gave up after {took_s:.2f} s only"
    return f"given up after {took_s:.2f} s, with {grace_s:g} s of grace and {TTL_S:g} s to live"


SCENES: dict[str, Callable[[ServerProcess], Awaitable[str]]] = {
    scene.__name__: scene
    for scene in (restart, frozen_server, long_frozen_server, frozen_client, long_outage)
}


async def play(server: ServerProcess, name: str) -> tuple[bool, str]:
    """One scene; whether all was as it has to be, and a line about it."""
    try:
        return True, await SCENES[name](server)
    except* (AssertionError, errors.MoatKvError, TimeoutError) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        found = f"{type(error).__name__}: {error}"
    return False, found


async def run(folder: pathlib.Path, rounds: int, names: list[str]) -> int:
    failed = dict.fromkeys(names, 0)
    async with served(folder) as server:
        for number in range(1, rounds + 1):
            for name in names:
                went_well, line = await play(server, name)
                failed[name] += not went_well
                if number == 1 or not went_well:
                    print(f"round {number}, {name}: {line}", flush=True)
                if not server.is_alive():
                    await server.start()
    total = sum(failed.values())
    print(
        f"{rounds} rounds: "
        + ", ".join(f"{name} {rounds - count}/{rounds}" for name, count in failed.items())
        + f"; {total} failed"
    )
    return 1 if total else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="taken as by the others; not used")
    parser.add_argument("--only", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--child", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        anyio.run(be_frozen, options.child)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.only)


if __name__ == "__main__":
    sys.exit(main())
