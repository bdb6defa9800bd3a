"""A procedure is called for each new error, once, by one node; its own errors call nobody."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import P, Path, errors
from moat_kv.client import error_record
from moat_kv_runner import notices
from tests.runner.bench import Bench, bench

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_ways")]

TELL = """
await _client.patch(_P("told"), "append", [str(error["path"]), error["message"], error["count"]])
"""


async def setting(b: Bench, **more: Any) -> None:
    await b.desk.set(b.places.error, {"notify": P("tell"), **more})


async def record(b: Bench, path: str, message: str = "broken") -> None:
    await error_record.record(b.desk, "run", P(path), node="n7", message=message)


async def resolve(b: Bench, path: str) -> None:
    assert await error_record.resolve(b.desk, "run", P(path))


async def told(b: Bench, count: int) -> list[list[Any]]:
    found = await b.value(P("told"), lambda told: len(told) >= count)
    assert len(found) == count
    return found  # type: ignore[no-any-return]


async def jobs(b: Bench) -> list[Path]:
    base = P(":.moat.kv.run.any.default.notify")
    return [each.path async for each in b.desk.get_tree(base)]


async def jobs_gone(b: Bench) -> None:
    with anyio.fail_after(30):
        while await jobs(b):
            await anyio.sleep(0.02)


async def test_each_new_error_is_told_once_by_one_of_the_nodes() -> None:
    async with bench("n1", "n2", "n3") as b:
        await b.store("tell", TELL)
        await record(b, "before")
        await setting(b)
        await record(b, "home.sensor")
        assert await told(b, 1) == [["home.sensor", "broken", 1]]
        await record(b, "home.sensor", "broken again")
        await record(b, "home.other")
        assert (await told(b, 2))[1] == ["home.other", "broken", 1]
        await resolve(b, "home.sensor")
        with anyio.fail_after(30):
            while len(await jobs(b)) != 1:
                await anyio.sleep(0.02)
        await record(b, "home.sensor", "it is back")
        assert (await told(b, 3))[2] == ["home.sensor", "it is back", 1]
        await b.desk.delete(b.places.error)
        await record(b, "nobody.cares")
        await setting(b)
        await record(b, "last")
        assert (await told(b, 4))[3] == ["last", "broken", 1]


async def test_failing_job_is_told_and_a_failing_notice_is_not() -> None:
    async with bench("n1", "n2") as b:
        await b.store("tell", TELL + "\nraise ValueError('no mail')")
        await setting(b)
        place = await b.job("1/0", path="bad")
        assert await told(b, 1) == [[str(place), "ZeroDivisionError: division by zero", 1]]
        base = P(":.moat.kv.run.any.default.notify")
        with anyio.fail_after(30):
            while not (found := await error_record.records(b.desk, under=base)):
                await anyio.sleep(0.02)
        assert found[0].message == "ValueError: no mail"
        await b.job("1/0", path="worse")
        assert len(await told(b, 2)) == 2
        assert len(await jobs(b)) == 2


async def test_jobs_of_errors_that_are_over_go_also_after_a_pause() -> None:
    async with bench() as b:
        node = await b.node("n1")
        await b.store("tell", TELL)
        await setting(b)
        await record(b, "a")
        await record(b, "b")
        await told(b, 2)
        await node.stop()
        await resolve(b, "a")
        await resolve(b, "b")
        assert len(await jobs(b)) == 2
        await b.node("n2")
        await jobs_gone(b)
        states = P(":.moat.kv.state.any.default.notify")
        with anyio.fail_after(30):
            while [each async for each in b.desk.get_tree(states)]:
                await anyio.sleep(0.02)


async def test_storm_of_errors_is_told_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "AT_ONCE", 2)
    text = """
        import anyio
        async with anyio.create_task_group():
            await _client.patch(_P("now"), "add", 1)
            await _client.patch(_P("log"), "append", (await _client.get(_P("now"))).value)
            await anyio.sleep(0.05)
            await _client.patch(_P("now"), "add", -1)
    """
    async with bench("n1") as b:
        await b.desk.set(P("now"), 0)
        await b.store("tell", text)
        await setting(b)
        for number in range(8):
            await record(b, f"many.n{number}")
        log = await b.value(P("log"), lambda log: len(log) == 8)
        assert max(log) <= 2


async def test_wrong_setting_is_said_and_of_another_group_is_left_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench("n1") as b:
        await b.store("tell", TELL)
        await setting(b, group="other")
        await record(b, "theirs")
        await b.desk.set(b.places.error, {"notify": "text"})
        await record(b, "nobodys")
        await setting(b, group="default")
        await record(b, "ours")
        assert await told(b, 1) == [["ours", "broken", 1]]
        assert "notify: the path of a procedure is needed, not 'text'" in caplog.text


@pytest.mark.parametrize(
    "value", [1, {"notify": 1}, {"notify": P("a"), "group": 1}, {"notify": P(":")}]
)
def test_setting_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(errors.BadValue):
        notices.parse(value, Path("default"))
