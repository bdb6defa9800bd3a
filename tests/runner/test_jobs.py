"""Jobs: when they run, what becomes of them, what stops them."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from moat_kv import P, errors, open_client
from moat_kv.client import error_record
from moat_kv.code import CodeRoot
from moat_kv.testing.server import running_server
from moat_kv_runner import AllRunnerRoot, AnyRunnerRoot, SingleRunnerRoot, commands
from moat_kv_runner.job import parse_state
from tests.runner.bench import LIMIT_S, bench

pytestmark = pytest.mark.anyio


async def test_library_form_runs_a_job() -> None:
    async with running_server() as server, open_client(server.url) as client:
        cr = await CodeRoot.as_handler(client)
        await cr.add("forty.two", code="return 42")
        r = await AnyRunnerRoot.as_handler(client, subpath=P("default"), code=cr)
        job = r.follow(P("foo.test"), create=True)
        job.code = P("forty.two")
        begin = time.time()
        await job.run_at(begin + 0.3)
        with anyio.fail_after(LIMIT_S):
            while job.state.result is None:
                await anyio.sleep(0.02)
        assert job.state.result == 42
        assert job.state.started >= begin + 0.3
        assert (
            await client.get(P(":.moat.kv.run.any.default.foo.test"))
        ).value.target == begin + 0.3
        assert (await client.get(P(":.moat.kv.state.any.default.foo.test"))).value.result == 42


async def test_library_form_of_the_other_kinds() -> None:
    async with running_server() as server, open_client(server.url) as client:
        cr = await CodeRoot.as_handler(client)
        await cr.add("who", code="return _self.node, str(_self.path)", is_async=True)
        for cls, place in (
            (SingleRunnerRoot, ":.moat.kv.state.at.n1.default.job"),
            (AllRunnerRoot, ":.moat.kv.state.all.default.n1.job"),
        ):
            root = await cls.as_handler(client, code=cr, name="n1")
            job = root.follow(P("job"), create=True)
            job.code = P("who")
            await job.run_now()
            with anyio.fail_after(LIMIT_S):
                while job.state.result is None:
                    await anyio.sleep(0.02)
            assert job.state.result[0] == "n1"
            assert (await client.get(P(place))).value.result == job.state.result


async def test_attributes_of_a_job_are_drafts_until_saved() -> None:
    async with running_server() as server, open_client(server.url) as client:
        root = await AnyRunnerRoot.as_handler(client, serve=False)
        job = root.follow(P("a"), create=True)
        assert (job.delay, job.backoff, job.repeat, job.ok_after) == (100, 1.1, 0, 0)
        assert (job.target, job.enabled, job.code, job.data) == (None, True, None, {})
        job.delay = 5
        job.data = {"x": 1}
        assert job.delay == 5
        await job.save()
        await client.patch(job.absolute, "merge", {"info": "theirs"})
        job.delay = 6
        job.data = None  # as if it were never set
        await job.save()
        assert (await client.get(job.absolute)).value == {"delay": 6.0, "info": "theirs"}
        with pytest.raises(errors.BadValue, match="repeat: 0 or more"):
            job.repeat = -1
        with pytest.raises(errors.BadValue, match="code: a path"):
            job.code = 1


async def test_job_without_target_does_not_start() -> None:
    async with bench("n1") as b:
        place = await b.job("return 1", target=None)
        await b.job("return 2", path="other")
        await b.state(path="other")
        assert "value" not in await b.desk.get(b.state_path())
        await commands.change(b.desk, place, target=time.time())
        assert (await b.state()).result == 1


async def test_job_runs_once_for_a_target() -> None:
    async with bench("n1") as b:
        await b.store("count", "await _client.patch(_P('n'), 'add', 1)")
        place = await b.job(code=P("count"))
        await b.state()
        await commands.change(b.desk, place, info="no news")
        await b.job(code=P("count"), path="other")
        await b.state(path="other")
        assert await b.get("n") == 2
        await commands.change(b.desk, place, target=time.time())
        await b.value(P("n"), lambda n: n == 3)


async def test_target_in_the_future_is_waited_for() -> None:
    async with bench("n1") as b:
        begin = time.time()
        await b.job("return 1", target=0.4)
        state = await b.state()
        assert begin + 0.4 <= (state.started or 0) < begin + 0.4 + LIMIT_S


async def test_repeat_counts_from_the_end() -> None:
    async with bench("n1") as b:
        text = "import anyio\nawait anyio.sleep(0.1)\nawait _client.patch(_P('n'), 'add', 1)"
        begin = time.monotonic()
        await b.job(text, repeat=0.1)
        await b.value(P("n"), lambda n: n >= 4)
        assert time.monotonic() - begin >= 0.55
        state = await b.state(lambda state: state.computed)
        assert state.computed == pytest.approx((state.stopped or 0) + 0.1)
        assert state.reason == "done"


async def test_failure_backs_off_and_success_forgets_it() -> None:
    text = """
        n = (await _client.patch(_P("n"), "add", 1)).value
        if n < 4:
            raise RuntimeError(f"try {n}")
        return n
    """
    async with bench("n1") as b:
        place = await b.job(text, delay=0.05, backoff=2.0)
        state = await b.state(lambda state: state.result)
        history = [parse_state(each.value) for each in await b.desk.history(b.state_path())]
        first, second, _ = [each for each in reversed(history) if each.computed]
        assert first.backoff == 1
        assert first.result is None
        assert first.reason == "failed: RuntimeError: try 1"
        assert first.computed == pytest.approx((first.stopped or 0) + 0.05 * 2)
        assert second.backoff == 2
        assert second.computed == pytest.approx((second.stopped or 0) + 0.05 * 4)
        assert (state.result, state.backoff, state.reason) == (4, 0, "done")
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert (record.count, record.resolved_by) == (3, "success")


async def test_claim_is_kept_while_the_job_goes_on_and_released_at_its_end() -> None:
    async with bench("n1") as b:
        text = "n = (await _client.patch(_P('n'), 'add', 1)).value\nreturn n, _self.fence"
        place = await b.job(text, repeat=0.05)
        first = (await b.state(lambda s: s.result)).result
        later = (await b.state(lambda s: s.result and s.result[0] >= first[0] + 2)).result
        assert first[1] == later[1], "one claim, one fence"
        claim = await b.value(b.claim_path())
        assert claim["node"] == "n1"
        await commands.disable(b.desk, place)
        await b.gone(b.claim_path())
        await commands.enable(b.desk, place)
        # (A run of the former claim may have ended since; its result is there until the next has.)
        anew = await b.state(lambda s: s.result and s.result[1] != later[1])
        assert anew.result[1] > later[1], "a new claim has a higher fence"
        assert anew.fence == anew.result[1]


async def test_run_that_lasts_is_well_after_ok_after() -> None:
    text = """
        import anyio
        n = (await _client.patch(_P("n"), "add", 1)).value
        if n < 3:
            raise RuntimeError(n)
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        place = await b.job(text, delay=0.02, ok_after=0.1)
        await b.state(lambda state: state.backoff == 2)
        state = await b.state(lambda state: state.running and not state.backoff and state.pinged)
        assert state.started is not None
        await b.value(error_record.place("run", place, b.places), lambda value: value["resolved"])


async def test_disabling_stops_a_run_and_enabling_begins_anew() -> None:
    text = """
        import anyio
        await _client.patch(_P("n"), "add", 1)
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        place = await b.job(text)
        await b.value(P("n"), lambda n: n == 1)
        await commands.disable(b.desk, place)
        state = await b.state(lambda state: state.stopped)
        assert (state.interrupted, state.reason) == (True, "stopped")
        await b.gone(b.claim_path())
        await commands.enable(b.desk, place)
        await b.value(P("n"), lambda n: n == 2)
        await commands.change(b.desk, place, target=None)
        await b.state(lambda state: not state.running)
        await commands.change(b.desk, place, target=time.time())
        await b.value(P("n"), lambda n: n == 3)


async def test_deleting_a_job_stops_it_and_resolves_its_error() -> None:
    async with bench("n1") as b:
        place = await b.job("raise RuntimeError", delay=1000)
        await b.state(lambda state: state.backoff)
        await b.desk.delete(place)
        await b.gone(b.claim_path())
        assert "value" not in await b.desk.get(b.state_path())
        assert await error_record.records(b.desk) == []
        running = await b.job("import anyio\nawait anyio.sleep_forever()", path="other")
        await b.state(lambda state: state.running, path="other")
        await b.desk.delete(running)
        await b.gone(b.claim_path("other"))
        assert "value" not in await b.desk.get(b.state_path("other"))


async def test_state_goes_with_its_job_however_and_whenever_that_is_deleted() -> None:
    async with bench() as b:
        nodes = [await b.node(name) for name in ("n1", "n2")]
        states = []
        for kind, path in (("any", "a"), ("any", "b"), ("at", "c"), ("all", "d"), ("any", "kept")):
            await b.job("return 1", kind=kind, path=path)
            await b.state(path=path, kind=kind)
            states.append(b.state_path(path, kind=kind))
            await b.gone(b.claim_path(path, kind=kind))
        *gone, kept = states
        # What somebody else keeps there is none of the runner's.
        foreign = b.places.state + P("any.default.foreign")
        await b.desk.set(foreign, {"reason": "theirs"})
        for path in ("a", "c"):
            await b.desk.delete_tree(b.places.run / "any" + P("default") + P(path))
            await b.desk.delete_tree(b.places.run + P("at.n1.default") + P(path))
        for place in (gone[0], gone[2]):
            await b.gone(place)
        for node in nodes:
            await node.stop()
        await b.desk.delete(b.places.run + P("any.default.b"))
        await b.desk.delete(b.places.run + P("all.default.d"))
        assert "value" in await b.desk.get(gone[1])
        await b.node("n1")
        for place in gone:
            await b.gone(place)
        assert (await b.desk.get(kept)).value["result"] == 1
        assert (await b.desk.get(foreign)).value == {"reason": "theirs"}


async def test_deleted_job_that_comes_back_runs_again() -> None:
    async with bench("n1") as b:
        place = await b.job("return 1")
        await b.state(lambda state: state.result == 1)
        await b.gone(b.claim_path())
        await b.desk.delete(place)
        await b.job("return 2")
        await b.state(lambda state: state.result == 2)


async def test_group_settings_give_defaults_to_jobs() -> None:
    async with bench("n1") as b:
        await b.desk.set(b.places.run + P("any.default"), {"defaults": {"delay": 0.01}})
        await b.job("n = (await _client.patch(_P('n'), 'add', 1)).value\nassert n > 2")
        await b.value(P("n"), lambda n: n == 3)


async def test_jobs_of_every_kind_run_where_they_belong() -> None:
    async with bench("n1", "n2") as b:
        for kind in ("any", "at", "all"):
            await b.job("return _self.node", path=f"job.{kind}", kind=kind, node="n2")
        assert (await b.state(path="job.any")).result in ("n1", "n2")
        assert (await b.state(path="job.at", kind="at", node="n2")).result == "n2"
        for node in ("n1", "n2"):
            assert (await b.state(path="job.all", kind="all", node=node)).result == node


async def test_error_of_an_all_node_job_is_over_when_it_is_on_all_nodes() -> None:
    text = """
        if (await _client.get(_P("bad") / _self.node)).get("value"):
            raise RuntimeError(_self.node)
    """
    async with bench("n1", "n2") as b:
        await b.desk.set(P("bad.n1"), True)
        await b.desk.set(P("bad.n2"), True)
        place = await b.job(text, kind="all", delay=0.05, backoff=1)
        where = error_record.place("run", place, b.places)
        await b.value(where, lambda value: len(value["nodes"]) == 2)
        await b.desk.set(P("bad.n1"), False)
        half = await b.value(where, lambda value: value["nodes"]["n1"]["resolved"])
        assert not half["resolved"]
        await b.desk.set(P("bad.n2"), False)
        await b.value(where, lambda value: value["resolved"])


@pytest.mark.parametrize("bad", [{"kinds": ["some"]}, {"kinds": []}, {"name": "12"}], ids=str)
async def test_runner_refuses_what_cannot_be(bad: dict[str, Any]) -> None:
    from moat_kv_runner import run

    async with running_server() as server, open_client(server.url) as client:
        with pytest.raises(errors.BadConfig):
            await run(client, **bad)


async def test_error_record_that_cannot_be_kept_does_not_run_a_job_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(*_args: Any, **_options: Any) -> None:
        raise errors.FrameTooLarge(2, 1)

    monkeypatch.setattr(error_record, "record", refused)
    monkeypatch.setattr(error_record, "resolve", refused)
    async with bench("n1") as b:
        text = "n = (await _client.patch(_P('n'), 'add', 1)).value\nif n == 1: raise OSError"
        await b.job(text, delay=0.1)
        await b.state(lambda state: state.reason == "done")
        assert await b.get("n") == 2
