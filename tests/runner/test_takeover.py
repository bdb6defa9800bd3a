"""Several nodes: who runs a job, what happens when a node, or its line, goes away."""

from __future__ import annotations

import functools
import importlib
import pathlib
import textwrap
from typing import Any

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.code import ModuleRoot
from moat_kv.testing.server import running_server
from moat_kv_runner import AnyRunnerRoot, claims, run, serving
from moat_kv_runner.job import parse_state
from tests.client.waiting import until
from tests.runner.bench import LIMIT_S, Bench, bench
from tests.runner.relay import relay

pytestmark = pytest.mark.anyio

BEAT = """
    timer = await _self.timer(0.02)
    async for msg in _info:
        if isinstance(msg, _cls.TimerMsg):
            await _self.set(_P("beat"), {"node": _self.node, "fence": _self.fence})
            await timer.run(0.02)
        elif not isinstance(msg, _cls.ReadyMsg):
            facts = [type(msg).__name__, list(msg.msg.members), msg.msg.nodes]
            await _client.set(_P("seen") / _self.node, facts)
"""


async def beating(b: Bench, *, but: str | None = None) -> Any:
    """What the job wrote last, by another node than `but`."""
    return await b.value(P("beat"), lambda beat: beat["node"] != but)


async def test_any_node_job_runs_on_one_node_only() -> None:
    async with bench("n1", "n2", "n3") as b:
        text = "import anyio\nawait _client.patch(_P('runs'), 'append', _self.node)"
        for n in range(8):
            await b.job(text, path=f"job.n{n}")
        for n in range(8):
            await b.state(path=f"job.n{n}")
        assert len(await b.get("runs")) == 8


async def test_job_is_taken_over_when_its_nodes_session_ends() -> None:
    async with bench() as b:
        nodes = {name: await b.node(name) for name in ("n1", "n2")}
        await b.job(BEAT)
        first = await beating(b)
        b.end_session(nodes[first["node"]])
        second = await beating(b, but=first["node"])
        assert second["fence"] > first["fence"]
        state = await b.state(lambda state: state.fence == second["fence"] and state.running)
        assert state.node == second["node"]
        late = b.desk.bound(fence=(b.claim_path(), first["fence"]))
        with pytest.raises(errors.StaleFence):
            await late.set(P("beat"), "late")


async def test_job_is_taken_over_when_its_node_is_stopped() -> None:
    async with bench() as b:
        nodes = {name: await b.node(name) for name in ("n1", "n2")}
        await b.job(BEAT)
        first = await beating(b)
        await nodes[first["node"]].stop()
        second = await beating(b, but=first["node"])
        assert second["fence"] > first["fence"]


async def test_stopped_node_leaves_its_jobs_tidy_and_goes_on_with_them_later() -> None:
    async with bench() as b:
        node = await b.node("n1")
        await b.job(BEAT, kind="at")
        await beating(b)
        await node.stop()
        state = await b.state(lambda state: state.reason != "running", kind="at")
        assert state.reason == "its runner was stopped"
        assert state.running, "the run was cut off, so it is not over"
        assert "value" not in await b.desk.get(b.claim_path(kind="at"))
        await b.node("n1")
        again = await b.state(lambda s: s.reason == "running" and s.fence != state.fence, kind="at")
        assert again.backoff == 0


async def test_finished_job_is_not_run_again_by_another_node() -> None:
    async with bench() as b:
        nodes = {name: await b.node(name) for name in ("n1", "n2")}
        await b.job("return (await _client.patch(_P('n'), 'add', 1)).value")
        state = await b.state()
        assert state.node is not None
        await nodes[state.node].stop()
        await b.job("return 'other'", path="other")
        await b.state(path="other")
        assert await b.get("n") == 1


async def test_back_off_goes_over_to_the_next_node() -> None:
    async with bench() as b:
        nodes = {name: await b.node(name) for name in ("n1", "n2")}
        await b.job("raise RuntimeError(_self.node)", delay=0.3, backoff=1)
        first = await b.state(lambda state: state.backoff == 1)
        assert first.node is not None
        await nodes[first.node].stop()
        second = await b.state(lambda state: state.backoff == 2)
        assert second.node != first.node
        assert (second.started or 0) >= (first.stopped or 0) + 0.3


async def test_group_state_follows_the_members() -> None:
    async with bench() as b:
        # A runner of another kind is a member, too.
        await b.desk.set(b.places.run + P("all.default"), {"nodes": 3})
        first = await b.node("n1", kinds=["all"])
        await b.job(BEAT, kind="all")
        seen = P("seen.n1")
        await b.value(seen, lambda facts: facts == ["DetachedState", ["n1"], 3])
        await b.node("n2", kinds=["any"])
        await b.value(seen, lambda facts: facts == ["PartialState", ["n1", "n2"], 3])
        third = await b.node("n3", kinds=["at"])
        await b.value(seen, lambda facts: facts == ["CompleteState", ["n1", "n2", "n3"], 3])
        await b.desk.set(b.places.run + P("all.default"), {"nodes": 4})
        await b.value(seen, lambda facts: facts == ["PartialState", ["n1", "n2", "n3"], 4])
        await b.desk.delete(b.places.run + P("all.default"))
        await b.value(seen, lambda facts: facts == ["CompleteState", ["n1", "n2", "n3"], None])
        await third.stop()
        await b.value(seen, lambda facts: facts == ["CompleteState", ["n1", "n2"], None])
        assert not first.ended.is_set()


async def test_number_of_nodes_may_be_given_to_the_runner() -> None:
    async with bench() as b:
        await b.desk.set(b.places.run + P("any.default"), {"nodes": 3})
        await b.node("n1", nodes=1)
        await b.job(BEAT)
        assert await b.value(P("seen.n1")) == ["CompleteState", ["n1"], 1]


STATES = """
    fence = _self.fence
    async for msg in _info:
        if not isinstance(msg, _cls.RunnerMsg):
            states.append(type(msg).__name__)
            if states[-1] == "BrokenState":
                open(broken, "w").close()
            if states[1:] == ["BrokenState", "DetachedState"]:
                return states, fence
            if len(states) == 1:
                # Beside, because the line may be cut before the answer has come.
                await _self.spawn(_client.set, _P("ready"), fence)
"""


@pytest.mark.usefixtures("both_ways")
async def test_broken_line_is_told_and_the_job_goes_on_within_the_grace(
    tmp_path: pathlib.Path,
) -> None:
    broken = tmp_path / "broken"
    async with bench(tcp=True) as b, relay(b.server.url) as line:
        await b.node("n1", url=line.url, ttl_s=60, grace_s=60)
        text = "states = []\n" + textwrap.dedent(STATES)
        await b.job(text, variables=["broken"], data={"broken": str(broken)})
        fence = await b.value(P("ready"))
        line.cut(closed=True)
        # A state that waits to be read gives way to the next one.
        await until(broken.exists)
        line.closed = False
        state = await b.state()
        assert state.result == [["DetachedState", "BrokenState", "DetachedState"], fence]


async def test_line_that_is_broken_for_longer_than_the_grace_loses_the_claims() -> None:
    async with bench(tcp=True) as b, relay(b.server.url) as line:
        await b.node("n1", url=line.url)
        await b.job(BEAT)
        before = await beating(b)
        await b.node("n2")
        line.cut(closed=True)
        after = await beating(b, but="n1")
        assert after["fence"] > before["fence"]
        line.closed = False
        members = P(":.moat.kv.group.default")
        with anyio.fail_after(LIMIT_S):
            async with b.desk.watch_group(members) as watch:
                async for seen in watch:
                    if seen is not None and set(seen) == {"n1", "n2"}:
                        break
        assert (await b.get("beat"))["node"] == "n2", "nobody takes it back"


async def test_lost_session_cancels_all_jobs_and_begins_anew() -> None:
    text = """
        import anyio
        await _client.patch(_P("starts"), "append", _self.fence)
        try:
            await anyio.sleep_forever()
        finally:
            stored_log.lines.append(_self.fence)
    """
    async with bench() as b:
        modules = await ModuleRoot.as_handler(b.desk)
        await modules.add(P("stored_log"), code="lines = []")
        node = await b.node("n1", isolate="inline")
        await b.job("import stored_log\n" + textwrap.dedent(text))
        await b.job("import anyio\nawait anyio.sleep_forever()", path="other", kind="at")
        await b.value(P("starts"), lambda starts: len(starts) == 1)
        before = await b.state(lambda state: state.running, path="other", kind="at")
        b.end_session(node)
        starts = await b.value(P("starts"), lambda starts: len(starts) == 2)
        assert starts[1] > starts[0]
        assert importlib.import_module("stored_log").lines == starts[:1]
        other = await b.state(
            lambda state: state.running and state.fence != before.fence, path="other", kind="at"
        )
        assert other.backoff == 0, "a lost claim is no failure"


async def test_second_runner_of_a_name_and_kind_is_refused() -> None:
    async with bench() as b:
        await b.node("n1", kinds=["any"])
        await b.node("n1", kinds=["all"])
        async with open_client(b.server.url) as client:
            options = {"kinds": ["any"], "name": "n1", "grace_s": 0.5}
            with pytest.raises(
                errors.NameTaken,
                match="the runner name n1 is taken; another runner in the group default has it",
            ):
                await run(client, **options)  # type: ignore[arg-type]
        async with open_client(b.server.url) as client, anyio.create_task_group() as tasks:
            other_group = functools.partial(run, client, kinds=["any"], name="n1", group="other")
            await tasks.start(other_group)
            tasks.cancel_scope.cancel()


async def test_library_form_is_refused_a_taken_name_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "NAME_MARGIN_S", -2.0)
    async with bench("n1", kinds=["any"]) as b, open_client(b.server.url) as client:
        with pytest.raises(errors.NameTaken):
            await AnyRunnerRoot.as_handler(client, name="n1")


async def test_runner_that_comes_back_waits_for_its_former_session_to_end() -> None:
    async with running_server() as server:
        async with open_client(server.url) as desk:
            async with open_client(server.url) as former:
                session = former.session(ttl_s=10, grace_s=1)
                await session.__aenter__()
                group = P(":.moat.kv.group.default")
                await former.join(group, "n1", session=session, role="any")
                session.ended = True  # it has died and closes nothing
            async with open_client(server.url) as client, anyio.create_task_group() as tasks:
                with anyio.fail_after(LIMIT_S):
                    name = await tasks.start(
                        functools.partial(run, client, kinds=["any"], name="n1")
                    )
                assert name == "n1"
                tasks.cancel_scope.cancel()
            assert desk.connected


STRAY: dict[str, Any] = {
    "by-hand": {"node": "somebody"},
    "no-claim": 17,
    "of-nobody": {"node": "n9", "session": "x", "ttl_s": 0.1},
    "of-a-former-self": {"node": "n1", "session": "x"},
}


@pytest.mark.parametrize("which", list(STRAY))
async def test_claim_that_nobody_holds_blocks_its_job_for_a_while_only(
    which: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "STRAY_MARGIN_S", -9.0)
    async with bench() as b:
        written = await b.desk.set(b.claim_path(), STRAY[which])
        for name in ("n1", "n2"):
            await b.node(name)
        await b.job("return _self.fence")
        state = await b.state(lambda state: state.result)
        assert state.fence == state.result
        assert (state.fence or 0) > written.rev
    told = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    job = "job :.moat.kv.run.any.default.job"
    assert told.count(f"{job}: its claim was nobody's, and is taken over") == 1
    claim = ":.moat.kv.claim.any.default.job"
    waits = [text for text in told if text.startswith(f"{job} waits: no runner has written")]
    # Each runner says so once.
    assert len(waits) == (2 if which in ("by-hand", "no-claim") else 0)
    assert all(claim in text and "delete that, or it is taken over in" in text for text in waits)


async def test_claim_of_a_runner_that_is_not_there_is_left_alone_where_its_job_sticks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "STRAY_MARGIN_S", -9.5)
    async with bench("n1") as b:
        for path in ("other", "job"):
            await b.desk.set(b.claim_path(path), {"node": "n9", "session": "x", "ttl_s": 0.1})
        await b.job("return 1", path="job", on_split="stick")
        await b.job("return 1", path="other")
        await b.state(lambda state: state.result, path="other")
        await b.desk.set(b.claim_path("other"), {"node": "n9", "session": "x", "ttl_s": 0.1})
        await b.job("return 2", path="other")
        await b.state(lambda state: state.result == 2, path="other")
        assert "value" not in await b.desk.get(b.state_path())
        # Its claim gone, it is free: nothing says that it was ever begun.
        await b.desk.delete(b.claim_path())
        await b.state(lambda state: state.result)


async def test_claim_by_hand_is_waited_for_until_it_is_deleted() -> None:
    async with bench("n1", ttl_s=1000.0) as b:
        await b.desk.set(b.claim_path(), {"node": "somebody"})
        await b.job("return _self.fence")
        await b.job("return 1", path="other")
        await b.state(path="other")
        claim = str(b.claim_path())
        reason = f"waiting: no runner has written its claim, {claim}; delete that"
        blocked = await b.state(lambda state: state.reason == reason)
        assert (blocked.started, blocked.fence) == (None, None)
        await b.desk.delete(b.claim_path())
        state = await b.state(lambda state: state.result)
        assert state.fence == state.result
        assert state.reason == "done"


async def test_claim_of_a_live_runner_is_never_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STRAY_MARGIN_S", -10.0)
    async with bench("n1", "n2") as b:
        await b.job("import anyio\nawait anyio.sleep(1)\nreturn 'kept'")
        state = await b.state()
        assert state.result == "kept"
        assert len(await b.desk.history(b.claim_path())) <= 2


async def test_states_are_written_with_the_fence_of_their_claim() -> None:
    async with bench("n1", "n2") as b:
        await b.job(BEAT)
        await beating(b)
        history = await b.desk.history(b.state_path())
        claim = await b.desk.get(b.claim_path())
        states = [parse_state(each.value) for each in history]
        assert {state.fence for state in states} == {claim.rev}
        assert states[0].node == claim.value["node"]
