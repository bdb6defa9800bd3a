"""The blocking twin: the same calls from plain threads."""

from __future__ import annotations

import gc
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path as FilePath

import anyio
import anyio.from_thread
import pytest

from moat_kv import Client, ClientRoot, NotGiven, P, Path, Ready, blocking, errors
from moat_kv.client import client as client_module
from moat_kv.testing.server import RunningServer, running_server


@pytest.fixture
def served(tmp_path: FilePath) -> Iterator[RunningServer]:
    """A server in a thread of its own."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running_server(socket=tmp_path / "s")) as running,
    ):
        yield running


@pytest.fixture(params=["asyncio", "trio"])
def client(served: RunningServer, request: pytest.FixtureRequest) -> Iterator[blocking.Client]:
    with blocking.open_client(served.url, backend=request.param, name="plain") as client:
        yield client


def test_of_two_creators_who_both_found_nothing_one_wins(client: blocking.Client) -> None:
    one, other = client.get(P("a")), client.get(P("a"))
    client.set(P("a"), "one", chain=one.chain)
    with pytest.raises(errors.Conflict):
        client.set(P("a"), "other", chain=other.chain)
    client.set(P("a"), "whoever is last")


def test_reads_and_writes_are_those_of_the_client(client: blocking.Client) -> None:
    first = client.set(P("a.b"), {"t": 1})
    assert client.get(P("a.b")).value.t == 1
    with pytest.raises(errors.Conflict):
        client.set(P("a.b"), 2, chain=None)
    client.set(P("a.b"), 2, chain=first.chain)
    assert [(str(row.path), row.value) for row in client.get_tree(P("a"))] == [("b", 2)]
    assert [one.name for one in client.list(P("a"))] == ["b"]
    assert [row.value for row in client.history(P("a.b"))] == [2, {"t": 1}]
    assert client.patch(P("n"), "add", 2).value == 2
    assert len(client.batch([client.op_set(P("x"), 1), client.op_delete(P("n"))])) == 2
    assert "value" not in client.delete(P("x"))
    assert client.delete_tree(P(":")) == 1
    assert client.ping() > 0
    assert client.state()["connections"] == 1
    assert client.request("ping", {}, repeat=True).fields["revision"] > 0
    assert (client.name, client.connected, client.server.node) == ("plain", True, "test")
    assert client.config.client.name is None


def test_a_watch_is_a_plain_iterator(client: blocking.Client) -> None:
    client.set(P("a"), 1)
    with client.watch(P("a"), fetch=True) as watch:
        event = next(watch)
        assert getattr(event, "value", None) == 1
        assert isinstance(next(watch), Ready)
        client.set(P("a.b"), 2)
        for event in watch:
            assert getattr(event, "path", None) == P("a.b")
            break
        assert watch.since is not None


def test_many_rows_come_in_portions_and_leaving_early_stops_the_server(
    client: blocking.Client, served: RunningServer
) -> None:
    for start in range(0, 6000, 500):
        client.batch([client.op_set(Path("t", n), "x" * 500) for n in range(start, start + 500)])
    assert sum(1 for _ in client.get_tree(P("t"))) == 6000
    link = client.asynchronous.shared.link
    for _ in client.get_tree(P("t")):
        break
    gc.collect()
    rows = client.get_tree(P("t"))
    next(rows)
    rows.close()
    assert list(rows) == []
    waited = threading.Event()
    for _ in range(3_000):
        if not link._streams:
            break
        waited.wait(0.01)
    assert not link._streams
    (connection,) = served.server.connections
    client.ping()
    assert not connection._streams


def test_a_mirror_is_read_directly_and_written_through_run(client: blocking.Client) -> None:
    client.set(P("a.b"), 1)
    with client.mirror(P("a")) as root:
        assert root["b"].value == 1
        client.run(root["b"].update, 2)
        assert root["b"].value == 2
        client.run(root["b"].delete)
        assert root.get("b") is None
    with client.mirror(P("a"), ClientRoot) as root:
        assert root.value is NotGiven


def test_sessions_groups_and_messages(client: blocking.Client) -> None:
    with client.monitor(P("t")) as messages, client.watch_group(P("g")) as group:
        assert next(group) == {}
        with client.session(ttl_s=5, grace_s=1) as session:
            assert (session.ttl_s, session.grace_s, session.ended, session.lost) == (
                5,
                1,
                False,
                False,
            )
            client.set(P("s"), 1, session=session)
            client.bound(session=session).set(P("s.b"), 1)
            client.join(P("g"), "me", session=session, info=3)
            members = next(group)
            assert members is not None
            assert members["me"].info == 3
            client.leave(P("g"), "me")
        assert session.ended
        with pytest.raises(errors.SessionExpired):
            client.set(P("s"), 2, session=session)
        client.send(P("t.x"), 1)
        client.send(P("t.x"), raw=b"2")
        assert [next(messages).value, next(messages).value] == [1, b"2"]


def test_threads_share_one_client(client: blocking.Client) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(20):
                client.set(Path("n", number), step)
                assert client.get(Path("n", number)).value == step
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_errors_of_connecting_pass_as_they_are(tmp_path: FilePath) -> None:
    with pytest.raises(errors.CannotConnect):
        blocking.open_client(f"unix://{tmp_path}/none").__enter__()
    with pytest.raises(errors.BadConfig):
        blocking.open_client("nonsense").__enter__()


def test_an_error_in_the_body_passes_as_it_is(served: RunningServer) -> None:
    with pytest.raises(LookupError), blocking.open_client(served.url):
        raise LookupError


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_an_end_in_the_body_passes_as_it_is_and_the_line_is_closed(
    served: RunningServer, end: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(end), blocking.open_client(served.url) as client:
        raise end
    with pytest.raises(RuntimeError, match="not running"):
        client.get(P("a"))
    with blocking.open_client(served.url) as client:
        with pytest.raises(end), client.watch(P("a")):
            raise end
        assert client.set(P("a"), 1).rev
    assert caplog.records == []


@pytest.mark.anyio
async def test_it_refuses_to_stop_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match=r"use moat_kv.open_client"):
        blocking.open_client().__enter__()


@pytest.mark.anyio
async def test_a_call_from_within_an_event_loop_is_refused_and_from_a_thread_is_not() -> None:
    async with running_server() as running:
        context = blocking.open_client(running.url)
        client = await anyio.to_thread.run_sync(context.__enter__)
        try:
            with pytest.raises(RuntimeError, match="event loop"):
                client.get(P("a"))
            result = await anyio.to_thread.run_sync(client.set, P("a"), 1)
            assert result.rev == 1
        finally:
            await anyio.to_thread.run_sync(context.__exit__, None, None, None)


def test_no_call_of_the_client_is_missing() -> None:
    public = {name for name in dir(Client) if not name.startswith("_")}
    only_async = {"task_group", "add_connection_listener"}
    missing = {name for name in public - only_async if not hasattr(blocking.Client, name)}
    assert missing == set()
    for name in public - only_async:
        ours = getattr(blocking.Client, name)
        theirs = inspect.getattr_static(client_module.Client, name)
        if isinstance(theirs, property):
            continue
        parameters = inspect.signature(ours).parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            continue
        assert list(parameters) == list(inspect.signature(getattr(Client, name)).parameters)
