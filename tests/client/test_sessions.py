"""Sessions and memberships: kept alive, resumed, lost."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import MemberInfo, P, errors, open_client
from moat_kv.client import session as session_module
from moat_kv.client.results import Members
from moat_kv.testing.server import running_server
from tests.client.proxy import proxied
from tests.client.waiting import both, take, until

pytestmark = pytest.mark.anyio


async def test_a_session_takes_its_entries_with_it() -> None:
    async with both() as (_, client):
        async with client.session() as session:
            assert (session.ttl_s, session.grace_s) == (10, 2)
            await client.set(P("a"), 1, session=session)
            await client.bound(session=session).set(P("b"), 1)
            await client.batch([client.op_set(P("c"), 1, session=session.id)])
            assert not session.ended
        assert session.ended
        assert not session.lost.is_set()
        for text in "abc":
            await until_gone(client, text)
        for given in (session, session.id):
            with pytest.raises(errors.SessionExpired):
                await client.set(P("a"), 1, session=given)
        await session.close()


async def until_gone(client: Any, text: str) -> None:
    with anyio.fail_after(30):
        while "value" in await client.get(P(text)):
            await anyio.sleep(0.01)


async def test_a_session_is_kept_alive_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # Here it is the server that is not to end it; this end gives up early on a busy machine.
    monkeypatch.setattr(session_module, "GIVE_UP", 100)
    async with both() as (running, client), client.session(ttl_s=2) as session:
        await client.set(P("a"), 1, session=session)
        known = running.server.sessions._live[session.id]
        opened_at, good_until = known.heard_at, session.good_until
        await until(lambda: known.ended or known.heard_at - opened_at > session.ttl_s)
        await until(lambda: known.ended or session.good_until - good_until > session.ttl_s / 2)
        assert not session.ended
        assert (await client.get(P("a"))).value == 1


async def test_a_session_is_resumed_after_a_short_break() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        client.session(ttl_s=60, grace_s=60) as session,
    ):
        await client.set(P("a"), 1, session=session)
        await client.join(P("g"), "me", session=session, info=1)
        for lines in (2, 3):
            await proxy.cut()
            while not (proxy.lines == lines and client.connected):
                await anyio.sleep(0.005)
            await client.set(P("b"), lines, session=session)
        assert not session.ended
        assert (await client.get(P("a"))).value == 1
        assert running.server.describe()["groups"] == {"g": ["me"]}


async def test_a_session_whose_line_is_broken_for_too_long_is_given_up_early() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        open_client(running.url) as other,
        client.session(ttl_s=10, grace_s=1.5) as session,
    ):
        await client.set(P("a"), 1, session=session)
        known = running.server.sessions._live[session.id]
        await proxy.cut(refuse=True)
        with anyio.fail_after(30):
            await session.lost.wait()
        # At this very moment, and not when an answer has come.
        assert not known.ended
        assert session.ended
        await until_gone(other, "a")
        proxy.accept()
        await until(lambda: client.connected)
        with pytest.raises(errors.SessionExpired):
            await client.set(P("a"), 2, session=session)
        assert session.why_lost == "no sign of life was acknowledged in time"


async def test_a_session_that_is_doubted_is_asked_for_at_once() -> None:
    async with both() as (running, client), client.session(ttl_s=600) as session:
        known = running.server.sessions._live[session.id]
        alive_at = session._alive_at
        await session.doubt()
        await until(lambda: session._alive_at > alive_at)
        assert not session.ended
        running.server.sessions.end(known, "by the test")
        await session.doubt()
        await until(session.lost.is_set)
        assert session.why_lost == "the server has ended it"


async def test_a_session_that_gets_no_answers_is_given_up_within_its_time_to_live() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        open_client(running.url) as other,
        client.session(ttl_s=1.5) as session,
    ):
        await client.set(P("a"), 1, session=session)
        known = running.server.sessions._live[session.id]
        # What the client sends goes nowhere, too.
        proxy.hold_requests()
        proxy.hold_answers()
        with anyio.fail_after(30):
            await session.lost.wait()
        assert not known.ended
        await until_gone(other, "a")
        proxy.release_answers()


async def test_a_session_that_was_given_up_is_ended_at_the_server_when_it_is_closed() -> None:
    async with both() as (running, client):
        session = client.session(ttl_s=100)
        await session.__aenter__()
        await client.set(P("a"), 1, session=session)
        session._lose("by the test")
        await session.close()
        await until_gone(client, "a")
        assert len(running.server.sessions) == 0


async def test_a_session_is_ended_when_a_server_that_hung_hears_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "CLOSE_LIMIT_S", 0.1)
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        client.session(ttl_s=100) as session,
    ):
        await client.set(P("a"), 1, session=session)
        proxy.hold_requests()
        session._lose("by the test")
        await session.close()
        proxy.release_requests()
        await until_gone(client, "a")


async def test_a_session_that_is_closed_without_a_line_is_ended_on_the_next_one() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        client.session(ttl_s=100, grace_s=100) as session,
        client.session(ttl_s=100, grace_s=100) as lost,
    ):
        await client.set(P("a"), 1, session=session)
        await client.set(P("b"), 1, session=lost)
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        lost._lose("by the test")
        await lost.close()
        await session.close()
        proxy.accept()
        for text in "ab":
            await until_gone(client, text)
        assert len(running.server.sessions) == 0


async def test_a_session_that_the_server_has_ended_is_lost() -> None:
    async with both() as (running, client), client.session(ttl_s=0.5) as session:
        running.server.sessions.end(running.server.sessions._live[session.id], "by the test")
        with anyio.fail_after(30):
            await session.lost.wait()
        assert session.ended


async def test_a_session_is_lost_when_another_took_its_name_in_a_group_meanwhile() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        open_client(running.url) as other,
        client.session(ttl_s=60, grace_s=60) as session,
        other.session() as theirs,
    ):
        await client.set(P("a"), 1, session=session)
        for role in ("one", "two"):
            await client.join(P("g"), "me", session=session, role=role)
        await proxy.cut(refuse=True)
        await until(lambda: not client.connected)
        # As after a restart of the server, which knows no members: the faster one has the name.
        running.server.groups.session_ended(session.id)
        await other.join(P("g"), "me", session=theirs, role="one", info="theirs")
        proxy.accept()
        with anyio.fail_after(30):
            await session.lost.wait()
        await until(lambda: client.connected)
        assert running.server.describe()["groups"] == {"g": ["me"]}
        with pytest.raises(errors.SessionExpired):
            await client.set(P("a"), 2, session=session)
        await session.close()
        assert "value" not in await client.get(P("a"))
        async with other.watch_group(P("g")) as members:
            assert await take(members) == [
                Members({"me": MemberInfo(roles=("one",), info="theirs")})
            ]


async def test_a_restarted_server_does_not_know_the_session_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with proxied(None) as proxy, running_server("one", tcp=True) as one:
        proxy.target = int(one.url.rpartition(":")[2])
        async with (
            running_server("two", tcp=True) as two,
            open_client(proxy.url) as client,
            client.session() as session,
        ):
            await client.join(P("g"), "me", session=session)
            proxy.target = int(two.url.rpartition(":")[2])
            await proxy.cut()
            with anyio.fail_after(30):
                await session.lost.wait()
            await until(lambda: client.connected)
            assert two.server.describe()["groups"] == {}
            assert "cannot be me" not in caplog.text
            async with client.session() as fresh:
                await client.set(P("a"), 1, session=fresh)


async def test_what_a_session_may_be_is_up_to_the_server() -> None:
    async with both() as (_, client):
        with pytest.raises(errors.BadArguments):
            async with client.session(ttl_s=0):
                raise AssertionError("opened")


# Groups -----------------------------------------------------------------------------------------


async def test_members_are_seen_with_their_roles_and_infos() -> None:
    async with both() as (_, client), client.watch_group(P("g")) as group:
        assert await take(group) == [{}]
        async with client.session() as session:
            await client.join(P("g"), "one", session=session, info={"load": 1})
            (members,) = await take(group)
            assert isinstance(members, Members)
            assert members["one"].roles == ("member",)
            assert members["one"].info.load == 1
            await client.join(P("g"), "one", session=session, role="boss")
            (members,) = await take(group)
            assert members["one"].roles == ("boss", "member")
            await client.leave(P("g"), "one", "boss")
            await client.leave(P("g"), "one", "boss")
            (members,) = await take(group)
            assert members["one"].roles == ("member",)
        assert await take(group) == [{}]


async def test_a_name_is_taken_while_its_session_lives() -> None:
    async with both() as (running, client), open_client(running.url) as other:
        async with client.session() as session, other.session() as theirs:
            await client.join(P("g"), "one", session=session)
            with pytest.raises(errors.NameTaken):
                await other.join(P("g"), "one", session=theirs)
            await session.close()
            await other.join(P("g"), "one", session=theirs)
            with pytest.raises(errors.SessionExpired):
                await client.join(P("g"), "two", session=session)


async def test_a_slow_reader_of_a_group_gets_the_newest_members_only() -> None:
    async with both() as (_, client), client.session() as session:
        async with client.watch_group(P("g")) as group:
            for number in range(20):
                await client.join(P("g"), f"m{number}", session=session)
            await until(lambda: group._newest and len(group._newest[0] or {}) == 20)
            (members,) = await take(group)
            assert len(members) == 20


async def test_a_break_is_seen_in_a_group_and_memberships_come_back() -> None:
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(proxy.url) as client,
        client.session(ttl_s=60, grace_s=60) as session,
        client.watch_group(P("g")) as group,
    ):
        await client.join(P("g"), "me", session=session)
        await client.join(P("g"), "left", session=session)
        await client.leave(P("g"), "left")
        await until(lambda: group._newest and list(group._newest[0] or {}) == ["me"])
        await take(group)
        await proxy.cut(refuse=True)
        assert await take(group) == [None]
        proxy.accept()
        while (await take(group))[0] != {"me": MemberInfo(roles=("member",), info=None)}:
            pass
