"""Sessions, what belongs to them, and groups."""

from __future__ import annotations

import anyio
import pytest

from moat_kv import codec, errors
from moat_kv.path import P
from moat_kv.proto.messages import State
from moat_kv.testing.server import running_server
from tests.line import Line, connected

pytestmark = pytest.mark.anyio


async def opened(line: Line, **arguments: float) -> dict[str, str]:
    return (await line.ask("session_open", **arguments)).fields


async def gone(line: Line, text: str) -> None:
    """Wait until there is nothing at a path."""
    with anyio.fail_after(30):
        while (await line.ask("get", path=P(text))).value is not None:
            await anyio.sleep(0.01)


async def test_what_a_session_owns_goes_when_it_is_closed() -> None:
    async with running_server() as running, connected(running.url) as line:
        id = (await opened(line))["session"]
        await line.ask("set", 1, path=P("mine"), session=id)
        await line.ask("set", 1, path=P("taken"), session=id)
        await line.ask("set", 2, path=P("taken"))
        await line.ask("session_close", session=id)
        await gone(line, "mine")
        assert (await line.ask("get", path=P("taken"))).value == codec.pack(2)
        with pytest.raises(errors.SessionExpired):
            await line.ask("set", 1, path=P("mine"), session=id)


async def test_a_write_that_is_on_its_way_when_its_session_closes_leaves_nothing() -> None:
    async with running_server() as running, connected(running.url) as line:
        id = (await opened(line))["session"]
        await line.ask("set", 1, path=P("first"), session=id)
        late = await line.send("set", 1, path=P("late"), session=id)
        await line.ask("session_close", session=id)
        await line.next(late)
        await gone(line, "late")
        await gone(line, "first")


async def test_a_silent_session_ends_though_its_line_lives() -> None:
    async with running_server() as running, connected(running.url) as line:
        id = (await opened(line, ttl_s=0.6))["session"]
        await line.ask("set", 1, path=P("mine"), session=id)
        await gone(line, "mine")
        with pytest.raises(errors.SessionExpired):
            await line.ask("session_ping", session=id)


async def test_pings_keep_a_session() -> None:
    async with running_server() as running, connected(running.url) as line:
        id = (await opened(line, ttl_s=1.5))["session"]
        await line.ask("set", 1, path=P("mine"), session=id)
        for _ in range(8):
            await anyio.sleep(0.25)
            await line.ask("session_ping", session=id)
        assert (await line.ask("get", path=P("mine"))).value is not None


async def test_a_session_whose_line_broke_ends_after_the_grace() -> None:
    async with running_server() as running, connected(running.url) as other:
        async with connected(running.url) as line:
            id = (await opened(line, ttl_s=60, grace_s=0.2))["session"]
            await line.ask("set", 1, path=P("mine"), session=id)
        await gone(other, "mine")
        assert len(running.server.sessions) == 0


async def test_a_session_is_resumed_on_another_line_within_the_grace() -> None:
    async with running_server() as running, connected(running.url) as other:
        async with connected(running.url) as line:
            facts = await opened(line, ttl_s=60, grace_s=1.5)
            await line.ask("set", 1, path=P("mine"), session=facts["session"])
        with pytest.raises(errors.SessionExpired):
            await other.ask("session_resume", session=facts["session"], secret="wrong")
        await other.ask("session_resume", session=facts["session"], secret=facts["secret"])
        await anyio.sleep(1.8)
        assert (await other.ask("get", path=P("mine"))).value is not None
        await other.ask("set", 1, path=P("more"), session=facts["session"])


async def test_the_session_of_another_line_is_not_ones_own() -> None:
    async with running_server() as running:
        async with connected(running.url) as line, connected(running.url) as other:
            id = (await opened(line))["session"]
            with pytest.raises(errors.SessionExpired, match="another line"):
                await other.ask("set", 1, path=P("a"), session=id)


@pytest.mark.parametrize(
    "arguments",
    [{"ttl_s": 0.01}, {"ttl_s": 1e9}, {"ttl_s": 5, "grace_s": 6}, {"grace_s": -1}],
    ids=["short", "long", "grace-over-ttl", "negative"],
)
async def test_times_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    async with running_server() as running, connected(running.url) as line:
        with pytest.raises(errors.BadArguments, match="is from"):
            await opened(line, **arguments)


async def test_a_group_tells_who_joins_and_who_goes_with_a_session() -> None:
    async with running_server() as running, connected(running.url) as watching:
        seq = await watching.send("group_watch", group=P("g"))
        assert (await watching.next(seq)).state == State.START
        assert (await watching.next(seq)).fields == {"members": {}}
        async with connected(running.url) as line:
            id = (await opened(line, grace_s=0.1))["session"]
            await line.ask(
                "group_join", {"load": 1}, group=P("g"), name="n", session=id, role="any"
            )
            part = await watching.next(seq)
            assert part.fields == {"members": {"n": {"roles": ["any"]}}}
            assert part.value == codec.pack({"n": {"load": 1}})
        assert (await watching.next(seq)).fields == {"members": {}}


async def test_a_name_is_taken_once_per_role() -> None:
    async with running_server() as running:
        async with connected(running.url) as one, connected(running.url) as two:
            first, second = (await opened(one))["session"], (await opened(two))["session"]
            await one.ask("group_join", group=P("g"), name="n", session=first, role="any")
            with pytest.raises(errors.NameTaken, match="n is taken"):
                await two.ask("group_join", group=P("g"), name="n", session=second, role="any")
            await two.ask("group_join", group=P("g"), name="n", session=second, role="at")
            await two.ask("group_leave", group=P("g"), name="n", role="any")
            assert running.server.groups.describe() == {"g": ["n"]}
            await one.ask("group_leave", group=P("g"), name="n", role="any")
            await two.ask("group_leave", group=P("g"), name="n", role="at")
            assert running.server.groups.describe() == {}
