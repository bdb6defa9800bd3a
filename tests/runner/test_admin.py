"""What scripts do with `_self` beside listening: entries, errors, facts."""

from __future__ import annotations

import pytest

from moat_kv import P, errors
from moat_kv.client import error_record
from tests.runner.bench import bench, result_of, returned

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]


async def test_set_get_and_chain() -> None:
    text = """
        first = await _self.set(_P("a"), 1, chain=None)
        second = await _self.set(_P("a"), 2, chain=first.chain)
        try:
            await _self.set(_P("a"), 3, chain=first.chain)
        except Exception as exc:
            conflict = type(exc).__name__
        try:
            await _self.get(_P("nothing"))
        except KeyError as exc:
            missing = str(exc.args[0])
        return await _self.get(_P("a")), conflict, missing, second.rev > first.rev
    """
    assert await result_of(text) == [2, "Conflict", "nothing", True]


async def test_text_is_no_path() -> None:
    text = """
        calls = (
            lambda: _self.watch("a"), lambda: _self.monitor("a"), lambda: _self.set("a", 1),
            lambda: _self.get("a"), lambda: _self.send("a", 1), lambda: _self.error("a"),
            lambda: _self.record_error("a"), lambda: _self.resolve_error("a"),
            lambda: _self.watch(_P("a"), cls=_cls.TimerMsg), lambda: _self.timer(1, cls=int),
            lambda: _self.send(_P("a")),
        )
        refused = 0
        for call in calls:
            try:
                await call()
            except TypeError:
                refused += 1
        return refused, len(calls)
    """
    assert await result_of(text) == [11, 11]


async def test_error_is_recorded_and_fails_the_run() -> None:
    async with bench("n1") as b:
        place = await b.job("await _self.error(message='no bus', data={'port': 1})", delay=1000)
        state = await b.state()
        assert state.backoff == 1
        assert state.reason == "failed: ErrorRecorded: no bus"
        record = await error_record.find(b.desk, "run", place)
        assert record is not None
        assert (record.count, record.message) == (1, "no bus")
        assert record.nodes["n1"].data == {"port": 1}


async def test_error_of_an_entry_is_recorded_and_resolved_by_the_script() -> None:
    text = """
        try:
            1 / 0
        except ZeroDivisionError as exc:
            await _self.record_error(_P("home.sensor"), exc=exc, sensor=7)
        try:
            await _self.error(_P("home.other"), message="bad")
        except _cls.ErrorRecorded:
            pass
        return await _self.resolve_error(_P("home.other")), await _self.resolve_error(_P("none"))
    """
    async with bench("n1") as b:
        assert await returned(b, text) == [True, False]
        record = await error_record.find(b.desk, "run", P("home.sensor"))
        assert record is not None
        assert record.message == "ZeroDivisionError: division by zero"
        assert "1 / 0" in (record.nodes["n1"].trace or "")
        assert record.nodes["n1"].data == {"sensor": 7}
        assert [str(each.path) for each in await error_record.records(b.desk)] == ["home.sensor"]


async def test_setup_done_forgets_failures_and_resolves_the_error() -> None:
    text = """
        import anyio
        n = (await _client.patch(_P("n"), "add", 1)).value
        if n < 3:
            raise RuntimeError(n)
        await _self.setup_done()
        await anyio.sleep_forever()
    """
    async with bench("n1") as b:
        place = await b.job(text, delay=0.01)
        await b.state(lambda state: state.backoff == 2)
        await b.state(lambda state: state.running and state.backoff == 0)
        where = error_record.place("run", place, b.places)
        assert (await b.value(where, lambda value: value["resolved"]))["resolved_by"] == "success"


async def test_facts_and_names() -> None:
    text = """
        import logging
        assert isinstance(_log, logging.Logger)
        assert _Path("a", 1) == _P("a:1")
        assert _digits(123.456789, digits=4) == 123.5 and _digits(0) == 0
        try:
            _cfg.runner.queue = 5
        except AttributeError:
            pass
        else:
            raise AssertionError
        assert "client" not in _cfg and _cfg["places"].run == _P(":.moat.kv.run")
        assert _cls.NotGiven is not None and not _cls.NotGiven
        return sorted(_cls), str(_self.path), _self.node, _cfg.runner.name, str(_cfg.runner.group)
    """
    assert await result_of(text) == [
        sorted(
            [
                "ActorState",
                "BrokenState",
                "ChangeMsg",
                "CompleteState",
                "DetachedState",
                "ErrorRecorded",
                "LostClaim",
                "MQTTmsg",
                "NotGiven",
                "PartialState",
                "ReadyMsg",
                "RunnerMsg",
                "TimerMsg",
            ]
        ),
        ":.moat.kv.run.any.default.job",
        "n1",
        "n1",
        "default",
    ]


async def test_bound_client_is_refused_once_the_claim_has_passed_on() -> None:
    text = """
        import anyio
        await _client.set(_P("fence"), _self.fence)
        if await _client.get(_P("again")):
            pass
        try:
            while True:
                await _self.set(_P("beat"), anyio.current_time())
                await anyio.sleep(0.01)
        except _cls.LostClaim:
            raise
    """
    async with bench("n1") as b:
        await b.job(text)
        first = await b.value(P("fence"))
        assert (await b.desk.get(b.claim_path())).rev == first
        await b.desk.delete(b.claim_path())
        second = await b.value(P("fence"), lambda fence: fence != first)
        assert second > first
        late = b.desk.bound(fence=(b.claim_path(), first))
        with pytest.raises(errors.StaleFence):
            await late.set(P("beat"), "late")
        state = await b.state(lambda state: state.running and state.fence == second)
        assert state.backoff == 0, "losing a claim is no failure"
        assert await error_record.records(b.desk) == []
