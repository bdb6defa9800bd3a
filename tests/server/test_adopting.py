"""Sessions that outlive their server, and what ends with those that do not."""

from __future__ import annotations

import dataclasses
import pathlib

import anyio
import anyio.abc
import pytest

from moat_kv import Client, P, errors, open_client
from moat_kv.client.session import Session
from moat_kv.engine import network
from moat_kv.path import Path
from moat_kv.proto.messages import State
from moat_kv.server import expiry
from moat_kv.server.session import PLACE
from tests.line import connected
from tests.server.network import PATIENT, TIMES, Network, Site, until

pytestmark = pytest.mark.anyio

A = P("a")


def has(site: Site, path: Path) -> bool:
    node = site.server.store.tree.head(path)
    return node is not None and node.value is not None


def owner(net: Network, id: str) -> str | None:
    last = net.history(PLACE / id)[-1]
    return None if last is None else str(last["owner"])


async def test_session_goes_on_at_another_server(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2") as (one, two):
        async with connected(one.url) as line, connected(two.url) as other:
            opened = (await line.ask("session_open")).fields
            id, secret = opened["session"], opened["secret"]
            assert (opened["ttl_s"], opened["grace_s"]) == (PATIENT.ttl_s, PATIENT.grace_s)
            await line.ask("set", 1, path=A, session=id)
            assert owner(net, id) == one.server.origin
            with pytest.raises(errors.SessionExpired):
                await other.ask("session_resume", session=id, secret="wrong")
            resumed = (await other.ask("session_resume", session=id, secret=secret)).fields
            assert resumed == {"ttl_s": PATIENT.ttl_s, "grace_s": PATIENT.grace_s}
            assert owner(net, id) == two.server.origin
            # The one that had it does not end it, and takes nothing more in its name.
            assert len(one.server.sessions) == 0
            with pytest.raises(errors.SessionExpired):
                await line.ask("set", 2, path=A, session=id)
            await other.ask("set", 3, path=A, session=id)
            await other.ask("session_close", session=id)
            await until(lambda: not has(one, A) and not has(two, A))
        assert net.history(PLACE / id).count(None) == 1


async def test_session_that_owns_nothing_is_not_known_elsewhere(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2") as (one, two),
        connected(one.url) as line,
        connected(two.url) as other,
    ):
        opened = (await line.ask("session_open")).fields
        id, secret = opened["session"], opened["secret"]
        with pytest.raises(errors.SessionExpired):
            await other.ask("session_resume", session=id, secret=secret)
        await line.ask("session_ping", session=id)


async def test_cut_off_server_adopts_nothing(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with (
        net.servers("n1", "n2") as (one, two),
        connected(one.url) as line,
        connected(two.url) as other,
    ):
        opened = (await line.ask("session_open")).fields
        id, secret = opened["session"], opened["secret"]
        await line.ask("set", 1, path=A, session=id)
        two.cut()
        with pytest.raises(errors.Detached):
            await other.ask("session_resume", session=id, secret=secret)
        await line.ask("session_ping", session=id)


async def test_dead_servers_session_ends_once_after_its_time_to_live(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path)
    async with net.servers("n1", "n2", "n3") as (one, two, three):
        async with connected(one.url) as line:
            id = (await line.ask("session_open")).fields["session"]
            await line.ask("set", 1, path=A, session=id)
            one.cut()
            seen_at = min(each.server.leases._seen["n1"].seen_at for each in (two, three))
            await until(lambda: not has(two, A) and not has(three, A))
            assert anyio.current_time() - seen_at > TIMES.lease_s + TIMES.ttl_s
            assert net.history(PLACE / id).count(None) == 1
            assert net.history(A).count(None) == 1


async def test_cut_off_server_ends_its_sessions_itself_and_cleans_up_when_back(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2") as (one, two), connected(one.url) as line:
        id = (await line.ask("session_open", ttl_s=60, grace_s=60)).fields["session"]
        await line.ask("set", 1, path=A, session=id)
        one.cut()
        await line.ask("session_ping", session=id)
        one.skip(PATIENT.lease_s)
        with pytest.raises(errors.SessionExpired):
            await line.ask("session_ping", session=id)
        assert not one.server.leases.held
        assert has(two, A)
        one.heal()
        await until(lambda: not has(two, A))
        assert net.history(PLACE / id)[-1] is None


async def test_minority_ends_nobodys_session(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path)
    async with net.servers("n1", "n2", "n3") as (one, two, three):
        async with connected(one.url) as line:
            id = (await line.ask("session_open")).fields["session"]
            await line.ask("set", 1, path=A, session=id)
            two.cut()
            three.cut()
            for _ in range(10):
                await anyio.sleep((TIMES.lease_s + TIMES.ttl_s + 0.5) / 10)
                await line.ask("session_ping", session=id)
            two.heal()
            three.heal()
            await anyio.sleep(0.5)
            await line.ask("session_ping", session=id)
            assert has(three, A)


async def test_session_of_a_server_that_is_back_in_time_goes_on(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2") as (one, two), connected(one.url) as line:
        id = (await line.ask("session_open", ttl_s=60)).fields["session"]
        await line.ask("set", 1, path=A, session=id)
        until_then = one.server.leases._held_until or 0.0
        one.cut()
        for site in (one, two):
            site.skip(PATIENT.lease_s / 3)
        one.heal()
        # It is renewed by then, or would be over.
        await until(lambda: (one.server.leases._held_until or 0.0) > until_then)
        for site in (one, two):
            site.skip(PATIENT.lease_s * 0.9)
        assert not two.server.leases.is_over(one.server.origin)
        await line.ask("set", 2, path=A, session=id)
        assert has(two, A)


async def test_client_moves_to_another_server_with_session_and_membership(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    die = anyio.Event()

    async def serve(*, task_status: anyio.abc.TaskStatus[Site]) -> None:
        async with net.server("n1") as one:
            task_status.started(one)
            await die.wait()
            one.cut()  # it dies before it can give anything back

    async with net.server("n2") as two, anyio.create_task_group() as tasks:
        one = await tasks.start(serve)
        async with open_client([one.url, two.url]) as client, client.session() as session:
            await client.set(A, 1, session=session)
            await client.join(P("g"), "me", session=session)
            die.set()
            await until(lambda: owner(net, session.id) == two.server.origin)
            await written(client, A, session)
            assert not session.lost.is_set()
            await until(lambda: two.server.groups.describe() == {"g": ["me"]})
            assert None not in net.history(A)
        await until(lambda: not has(two, A))


async def written(client: Client, path: Path, session: Session) -> None:
    """Write as soon as there is a line."""
    with anyio.fail_after(30):
        while True:
            try:
                await client.set(path, 2, session=session)
            except (errors.Disconnected, errors.Unknown, errors.Detached):
                await anyio.sleep(0.02)
            else:
                return


async def test_client_goes_past_a_server_that_is_cut_off(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    die = anyio.Event()

    async def serve(*, task_status: anyio.abc.TaskStatus[Site]) -> None:
        async with net.server("n1") as one:
            task_status.started(one)
            await die.wait()
            one.cut()

    async with (
        net.servers("n2", "n3") as (two, three),
        anyio.create_task_group() as tasks,
    ):
        one = await tasks.start(serve)
        urls = [one.url, two.url, three.url]
        async with open_client(urls) as client, client.session(ttl_s=60, grace_s=60) as session:
            await client.set(A, 1, session=session)
            two.cut()
            die.set()
            await until(lambda: owner(net, session.id) == three.server.origin)
            await written(client, A, session)
            assert client.server.node == "n3"
            assert not session.lost.is_set()


async def test_of_two_servers_that_adopt_at_once_one_has_the_session(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2", "n3") as (one, two, three):
        async with (
            connected(one.url) as line,
            connected(two.url) as second,
            connected(three.url) as third,
        ):
            opened = (await line.ask("session_open")).fields
            id, secret = opened["session"], opened["secret"]
            await line.ask("set", 1, path=A, session=id)
            # Both have judged by the same record before either of them is heard.
            two.remote.hangs = three.remote.hangs = True
            asked = [
                (other, await other.send("session_resume", session=id, secret=secret))
                for other in (second, third)
            ]
            await until(lambda: all(id in each.server.estates._adopting for each in (two, three)))
            two.remote.answer()
            three.remote.answer()
            # The one whom the other overtook may have been told, or not.
            states = [(await other.next(seq)).state for other, seq in asked]
            assert State.REPLY in states
            holders = [each for each in (one, two, three) if id in each.server.sessions]
            assert [each.server.origin for each in holders] == [owner(net, id)]


def adoptions(site: Site) -> int:
    """How many wait for the log's answer."""
    place = PLACE
    return sum(writes[0].path[: len(place)] == place for writes, _ in site.remote._hanging)


async def test_of_two_lines_that_resume_at_once_at_one_server_both_are_answered(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2") as (one, two):
        async with connected(one.url) as line, connected(two.url) as first:
            opened = (await line.ask("session_open", ttl_s=60, grace_s=60)).fields
            id, secret = opened["session"], opened["secret"]
            await line.ask("set", 1, path=A, session=id)
            async with connected(two.url) as second:
                two.remote.hangs = True
                asked = [
                    (other, await other.send("session_resume", session=id, secret=secret))
                    for other in (first, second)
                ]
                await until(lambda: adoptions(two) == 1)
                await until(lambda: two.server.estates._adopting[id].waiting == 2)
                two.remote.answer()
                answers = [await other.next(seq) for other, seq in asked]
                assert [each.state for each in answers] == [State.REPLY] * 2
                assert owner(net, id) == two.server.origin
                # It is with one of the two, and the other's end does not concern it.
                assert sum(id in each.sessions for each in two.server.connections) == 1
            await until(lambda: len(two.server.connections) == 1)
            await first.ask("session_resume", session=id, secret=secret)
            await first.ask("set", 2, path=A, session=id)


async def test_late_adoption_for_a_line_that_is_gone_takes_nothing_away(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2", "n3") as (one, two, three):
        async with connected(one.url) as line, connected(three.url) as other:
            opened = (await line.ask("session_open", ttl_s=60, grace_s=60)).fields
            id, secret = opened["session"], opened["secret"]
            await line.ask("set", 1, path=A, session=id)
            two.remote.hangs = True
            async with connected(two.url) as gone:
                await gone.send("session_resume", session=id, secret=secret)
                await until(lambda: adoptions(two) == 1)
            await until(lambda: not two.server.connections)
            # Its client has found another server meanwhile.
            await other.ask("session_resume", session=id, secret=secret)
            two.remote.answer()
            await until(lambda: not two.server.estates._adopting)
            await other.ask("set", 2, path=A, session=id)
            assert owner(net, id) == three.server.origin


async def test_tree_that_is_taken_anew_keeps_what_goes_on(tmp_path: pathlib.Path) -> None:
    net = Network(tmp_path, PATIENT)
    async with net.servers("n1", "n2") as (one, two), open_client(one.url) as client:
        async with client.session(ttl_s=60, grace_s=60) as session:
            await client.set(A, 1, session=session)
            await client.set(P("b"), 1)
            await client.delete(P("b"))
            one.cut()
            net.log.forget(P("b"))
            one.heal()
            assert one.server.leases.held
            await written(client, A, session)
            assert has(two, A)


async def test_entry_that_ends_by_itself_is_deleted_first_by_who_took_it(
    tmp_path: pathlib.Path,
) -> None:
    net = Network(tmp_path, PATIENT)
    late = dataclasses.replace(PATIENT, leave_s=3.0)
    async with net.server("n1", times=late) as one, net.server("n2", times=late) as two:
        async with connected(one.url) as line:
            await line.ask("set", 1, path=A, ttl_s=1)
            await line.ask("set", 1, path=P("b"), ttl_s=2.5)
            net.log.now += 2
            await until(lambda: not has(two, A))
            assert by(net, A) == one.server.origin
            # Now n1 is away when its turn comes: the other one waits a little, and does it.
            one.cut()
            net.log.now += 2
            await anyio.sleep(1.5)
            assert has(two, P("b"))
            net.log.now += 3
            await until(lambda: not has(two, P("b")))
            assert by(net, P("b")) == two.server.origin


async def test_entry_ends_in_time_at_a_server_that_started_cut_off_with_a_wrong_date(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "TOUCH_S", 0.1)
    monkeypatch.setattr(expiry, "LOOK_S", 0.2)
    net = Network(tmp_path, PATIENT)
    async with net.server("n1") as one, connected(one.url) as line:
        await line.ask("set", 1, path=A, ttl_s=60)
        await one.has_copy()
    async with net.server("n1", is_linked=False, wrong_s=10 * 365 * 86_400) as one:
        await until(lambda: has(one, A))
        # It looks once while it thinks that the time is over.
        await anyio.sleep(expiry.LOOK_S + 0.1)
        one.heal()
        assert has(one, A)
        net.log.now += 70
        await until(lambda: not has(one, A))


def by(net: Network, path: Path) -> str:
    return [record for record in net.log.records if record.path == path][-1].origin
