"""What scripts and runners do while the line to the server is broken."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.client import session as session_module
from moat_kv.client import writes
from moat_kv.engine.base import Done
from moat_kv.entry import Write
from moat_kv.testing.server import RunningServer, running_server
from moat_kv_runner import messages, node_facts
from moat_kv_runner.script_client import ScriptClient
from tests.client.proxy import Proxy, proxied
from tests.client.waiting import until
from tests.runner.bench import Bench, Node, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

#: Long enough for whatever the tests do meanwhile on a busy machine, in seconds.
GRACE_S = 20.0


@asynccontextmanager
async def outage(grace_s: float = GRACE_S) -> AsyncIterator[tuple[Bench, Node, Proxy]]:
    """A runner whose line can be broken."""
    async with bench(tcp=True) as b, proxied(b.server.url) as proxy:
        node = await b.node("n1", url=proxy.url, ttl_s=GRACE_S, grace_s=grace_s)
        yield b, node, proxy
        await node.stop()  # while it has its line


WRITES = {
    "set": "await _client.set(_P('a'), 1)",
    "self-set": "await _self.set(_P('a'), 1)",
    "delete": "await _client.delete(_P('a'))",
    "expect": "await _client.set(_P('a'), 1, expect=0)",
    "chain": "await _self.set(_P('a'), 1, chain=None)",
    "patch": "await _client.patch(_P('a'), 'add', 1)",
    "batch": "await _client.batch([_client.op_set(_P('a'), 1)])",
    "delete-tree": "await _client.delete_tree(_P('a'))",
    "send": "await _self.send(_P('a'), 1)",
    "error": "await _self.record_error(_P('a'), message='m')",
    "mirror": "async with _client.mirror(_P('m')) as m:\n    pass\n"
    "await m.follow(_P('a'), create=True).update(1, wait=False)",
}


async def test_load_that_changes_meanwhile_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr(node_facts, "LOOK_S", 0.01)
    monkeypatch.setattr(node_facts, "own_load", lambda: next(looks) % 10 / 10)
    async with outage() as (b, node, proxy):
        await b.job("import anyio\nawait anyio.sleep_forever()")
        fence = (await b.state(lambda state: state.running)).fence
        await proxy.cut(refuse=True)
        await until(lambda: not node.client.connected)
        seen = next(looks)
        await anyio.sleep(0.3)
        proxy.accept()
        await until(lambda: node.client.connected)
        await until(lambda: next(looks) > seen + 20)
        state = await b.state(lambda state: True)
        assert state.running
        assert state.fence == fence


WHEN_DOWN = """
_log.warning("is ready")
async for msg in _info:
    if isinstance(msg, _cls.BrokenState):
        break
_log.warning("is without a line")
"""


@pytest.mark.parametrize("which", list(WRITES))
async def test_write_without_a_line_waits_for_it_and_is_carried_out(
    which: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with outage() as (b, _, proxy):
        await b.job(WHEN_DOWN + WRITES[which] + "\nreturn 'done'", delay=1000)
        await until(lambda: "is ready" in caplog.text)
        await proxy.cut(refuse=True)
        await until(lambda: "is without a line" in caplog.text)
        proxy.accept()
        state = await b.state()
        assert (state.result, state.backoff) == ("done", 0)


async def test_write_of_a_thread_waits_for_the_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = """
        import time
        _log.warning("is ready")
        while _client.connected:
            time.sleep(0.005)
        _client.set(_P("a"), 1)
        return "done"
    """
    async with outage() as (b, node, proxy):
        await b.job(text, is_async=False)
        await until(lambda: "is ready" in caplog.text)
        await proxy.cut(refuse=True)
        await until(lambda: not node.client.connected)
        proxy.accept()
        assert (await b.state()).result == "done"
        assert await b.get("a") == 1


class Lost:
    """A script's client, of whose next write the answer is lost."""

    def __init__(self, running: RunningServer, proxy: Proxy, client: ScriptClient) -> None:
        self.client = client
        self._running = running
        self._proxy = proxy

    async def write(
        self,
        call: Callable[[], Awaitable[Any]],
        *,
        arrives: bool,
        meanwhile: Callable[[], Awaitable[Any]] | None = None,
    ) -> Any:
        """What the write returns, though the line breaks after it has left. Raises its error."""
        revision = self._running.server.engine.revision
        outcome: list[Any] = []

        async def ask() -> None:
            try:
                outcome.append(await call())
            except (errors.MoatKvError, messages.LostClaim) as exc:
                outcome.append(exc)

        proxy = self._proxy
        async with anyio.create_task_group() as tasks:
            if arrives:
                proxy.hold_answers()
                tasks.start_soon(ask)
                await until(lambda: self._running.server.engine.revision > revision)
            else:
                proxy.hold_requests()
                tasks.start_soon(ask)
                await until(lambda: proxy.held)
            await proxy.cut(refuse=True)
            proxy.release_answers()
            proxy.release_requests()
            await until(lambda: not self.client.connected)
            if meanwhile is not None:
                await meanwhile()
            proxy.accept()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]


@asynccontextmanager
async def losing(
    grace_s: float = GRACE_S,
) -> AsyncIterator[tuple[Lost, Any, session_module.Session]]:
    """That client, another one that writes past the broken line, and the session."""
    async with (
        running_server(tcp=True) as running,
        proxied(running.url) as proxy,
        open_client(running.url) as desk,
        open_client(proxy.url) as client,
        client.session(ttl_s=GRACE_S, grace_s=grace_s) as session,
    ):
        script = ScriptClient(client.shared, writes.UNBOUND, session=session)
        yield Lost(running, proxy, script), desk, session


async def values(desk: Any) -> list[Any]:
    return [row.get("value", "deleted") for row in reversed(await desk.history(P("a")))]


@pytest.mark.parametrize("arrives", [True, False], ids=["arrived", "lost"])
@pytest.mark.parametrize("others", [True, False], ids=["others-write", "alone"])
async def test_set_whose_answer_is_lost_happens_once(arrives: bool, others: bool) -> None:
    async with losing() as (lost, desk, _):
        await lost.client.set(P("a"), "old")
        result = await lost.write(
            lambda: lost.client.set(P("a"), {"new": [1, 2.0, b"x", None]}),
            arrives=arrives,
            meanwhile=(lambda: desk.set(P("a"), "theirs")) if others else None,
        )
        new, theirs = [{"new": [1, 2.0, b"x", None]}], ["theirs"] if others else []
        assert await values(desk) == ["old", *(new + theirs if arrives else theirs + new)]
        (row,) = [row for row in await desk.history(P("a")) if row.rev == result.rev]
        assert (row.value, row.id, row.at) == (new[0], result.id, result.at)
        # The token is as good as one of an answer.
        if arrives and others:
            with pytest.raises(errors.Conflict):
                await lost.client.set(P("a"), 3, chain=result.chain)
        else:
            await lost.client.set(P("a"), 3, chain=result.chain)


@pytest.mark.parametrize("arrives", [True, False], ids=["arrived", "lost"])
@pytest.mark.parametrize("others", [True, False], ids=["others-write", "alone"])
async def test_deletion_whose_answer_is_lost_happens_once(arrives: bool, others: bool) -> None:
    async with losing() as (lost, desk, _):
        await lost.client.set(P("a"), "old")
        result = await lost.write(
            lambda: lost.client.delete(P("a")),
            arrives=arrives,
            meanwhile=(lambda: desk.set(P("a"), "theirs")) if others else None,
        )
        theirs = ["theirs"] if others else []
        after = ["deleted", *theirs] if arrives else [*theirs, "deleted"]
        assert await values(desk) == ["old", *after]
        assert result.deleted is True
        assert result.rev


async def test_set_after_which_more_was_written_than_is_kept_is_unknown() -> None:
    async with losing() as (lost, desk, _):

        async def many() -> None:
            for n in range(12):
                await desk.set(P("a"), n)

        with pytest.raises(errors.Unknown):
            await lost.write(lambda: lost.client.set(P("a"), "x"), arrives=True, meanwhile=many)
        assert (await desk.get(P("a"))).value == 11


UNSAFE: dict[str, Callable[[ScriptClient], Awaitable[Any]]] = {
    "expect": lambda client: client.set(P("a"), 1, expect=0),
    "chain": lambda client: client.set(P("a"), 1, chain=None),
    "patch": lambda client: client.patch(P("a"), "add", 1),
    "batch": lambda client: client.batch([client.op_set(P("a"), 1)]),
}


@pytest.mark.parametrize("which", list(UNSAFE))
async def test_other_write_whose_answer_is_lost_is_unknown_and_never_repeated(which: str) -> None:
    async with losing() as (lost, desk, _):
        with pytest.raises(errors.Unknown):
            await lost.write(lambda: UNSAFE[which](lost.client), arrives=True)
        assert await values(desk) == [1]


async def test_waiting_ends_with_the_session() -> None:
    async with losing(grace_s=0.2) as (lost, desk, session):
        with pytest.raises(messages.LostClaim, match="away for longer than the runner's session"):
            await lost.write(
                lambda: lost.client.set(P("a"), 1), arrives=False, meanwhile=session.lost.wait
            )
        assert await values(desk) == []


async def test_run_that_waited_for_too_long_is_begun_anew_and_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = """
        if (await _client.get(_P("again"))).get("value"):
            return "done"
        _log.warning("is ready")
        async for msg in _info:
            if isinstance(msg, _cls.BrokenState):
                break
        try:
            await _client.set(_P("a"), 1)
        except _cls.LostClaim as exc:
            raise RuntimeError("what the script makes of it") from exc
    """
    async with outage(grace_s=0.5) as (b, _, proxy):
        await b.job(text, delay=1000)
        await until(lambda: "is ready" in caplog.text)
        await proxy.cut(refuse=True)
        await b.desk.set(P("again"), True)
        await b.gone(b.claim_path())
        proxy.accept()
        state = await b.state(lambda state: state.result)
        assert (state.result, state.backoff) == ("done", 0)


async def test_outage_is_told_once_at_its_begin_and_once_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with outage(grace_s=0.5) as (b, _, proxy):
        await b.job("import anyio\nawait anyio.sleep_forever()")
        first = await b.state(lambda state: state.running)
        await proxy.cut(refuse=True)
        await b.gone(b.claim_path())
        # In which the line could have been tried many times.
        with anyio.fail_after(30):
            while proxy.refused < 5:
                await anyio.sleep(0.01)
        proxy.accept()
        await b.state(lambda state: state.running and state.fence != first.fence)
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    # A keeper may be faster than this process, if that has got no time to run for a while.
    told = [text for text in told if not text.endswith("its runner was frozen; it begins anew")]
    assert told == [
        "n1: the server is away; without it the jobs go on for 0.4 s, then they end",
        "n1: the server is back; the jobs begin anew",
    ]


async def test_claim_that_goes_away_is_told_with_what_follows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench("n1") as b:
        await b.job("import anyio\nawait anyio.sleep_forever()")
        first = await b.state(lambda state: state.running)
        await b.desk.delete(b.claim_path())
        second = await b.state(lambda state: state.running and state.fence != first.fence)
        await b.desk.set(b.claim_path(), {"node": "n9"})
        await until(lambda: "n9" in caplog.text)
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    job = "job :.moat.kv.run.any.default.job: its run here was ended: "
    assert told[:2] == [
        f"{job}its claim, :.moat.kv.claim.any.default.job, was deleted; "
        "whose turn it is claims it anew",
        f"{job}runner n9 has its claim now",
    ]
    assert second.backoff == 0


OUT_OF_TOUCH = """
    import anyio
    while "value" not in await _client.get(_P("go")):
        await anyio.sleep(0.01)
    await _client.patch(_P("n"), "add", 1)
    await _client.delete(_P("go"))
    await _client.batch([_client.op_set(_P("done"), 1)])
"""


async def test_writes_wait_while_the_server_is_out_of_touch_with_its_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench("n1") as b:
        place = await b.job(OUT_OF_TOUCH)
        fence = (await b.state(lambda state: state.running)).fence
        submit, refused = b.server.server._turns._submit, 0

        def refuse_guarded(group: Sequence[Write], done: Done) -> None:
            nonlocal refused
            if any(write.guards for write in group):
                refused += 1
                done(errors.Detached("the network cannot be reached"))
            else:
                submit(group, done)

        monkeypatch.setattr(b.server.server._turns, "_submit", refuse_guarded)
        await b.desk.set(P("go"), 1)
        await until(lambda: refused > 2)
        assert "value" not in await b.desk.get(P("n"))
        monkeypatch.undo()
        assert await b.value(P("done")) == 1
        assert await b.get("n") == 1
        state = await b.state()
        assert (state.reason, state.fence) == ("done", fence), place
