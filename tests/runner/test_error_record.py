"""Errors are records in the tree: counted, shown per node, resolved by success or by hand."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from moat_kv import P, Path, errors, open_client
from moat_kv.client import error_record
from moat_kv.testing.server import running_server

pytestmark = pytest.mark.anyio

SENSOR = P("home.sensor")


def failure(text: str = "broken") -> Exception:
    try:
        raise ValueError(text)
    except ValueError as exc:
        return exc


async def test_occurrences_are_counted_and_keep_first_and_last_time() -> None:
    async with running_server() as server, open_client(server.url) as client:
        first = await error_record.record(client, "run", SENSOR, node="n1", exc=failure())
        second = await error_record.record(client, "run", SENSOR, node="n1", message="again")
        assert (first.count, second.count) == (1, 2)
        assert second.first == first.first <= second.last
        assert second.message == "again"
        found = await error_record.find(client, "run", SENSOR)
        assert found == second
        raw = await client.get(P(":.moat.kv.error.run") + SENSOR)
        assert raw.value.count == 2
        assert raw.value.path == SENSOR


async def test_each_node_has_its_own_trace() -> None:
    async with running_server() as server, open_client(server.url) as client:
        await error_record.record(client, "run", SENSOR, node="n1", exc=failure("one"))
        await error_record.record(client, "run", SENSOR, node="n2", exc=failure("two"))
        found = await error_record.find(client, "run", SENSOR)
        assert found is not None
        assert found.nodes["n1"].message == "ValueError: one"
        assert "ValueError: two" in (found.nodes["n2"].trace or "")
        assert found.count == 2


async def test_subsystem_and_path_name_one_record() -> None:
    async with running_server() as server, open_client(server.url) as client:
        await error_record.record(client, "run", SENSOR, node="n1", message="a")
        await error_record.record(client, "code", SENSOR, node="n1", message="b")
        await error_record.record(client, "run", SENSOR / "deeper", node="n1", message="c")
        found = await error_record.records(client)
        assert [each.message for each in found] == ["c", "b", "a"]
        under = await error_record.records(client, subsystem="run", under=SENSOR / "deeper")
        assert [each.message for each in under] == ["c"]


async def test_resolved_record_is_kept_with_comment_and_opened_anew_by_the_next_error() -> None:
    async with running_server() as server, open_client(server.url) as client:
        await error_record.record(client, "run", SENSOR, node="n1", message="a")
        assert await error_record.resolve(client, "run", SENSOR, comment="plugged in")
        assert not await error_record.resolve(client, "run", SENSOR)
        assert await error_record.records(client) == []
        (resolved,) = await error_record.records(client, resolved=True)
        assert resolved.resolved_by == error_record.BY_HAND
        assert resolved.comment == "plugged in"
        anew = await error_record.record(client, "run", SENSOR, node="n1", message="b")
        assert (anew.count, anew.resolved, anew.comment) == (1, None, None)
        assert len(await error_record.records(client, resolved=None)) == 1


async def test_record_of_all_nodes_is_resolved_when_the_last_one_has() -> None:
    async with running_server() as server, open_client(server.url) as client:
        for node in ("n1", "n2"):
            await error_record.record(client, "run", SENSOR, node=node, message="a")
        assert await error_record.resolve(client, "run", SENSOR, node="n1", by="success")
        assert not await error_record.resolve(client, "run", SENSOR, node="n1", by="success")
        assert not await error_record.resolve(client, "run", SENSOR, node="n3", by="success")
        assert len(await error_record.records(client)) == 1
        assert await error_record.resolve(client, "run", SENSOR, node="n2", by="success")
        (resolved,) = await error_record.records(client, resolved=True)
        assert resolved.resolved_by == "success"


async def test_nothing_is_written_where_there_is_nothing_to_resolve() -> None:
    async with running_server() as server, open_client(server.url) as client:
        assert not await error_record.resolve(client, "run", SENSOR)
        assert not await error_record.annotate(client, "run", SENSOR, "x")
        assert await error_record.find(client, "run", SENSOR) is None


async def test_comment_is_changed_and_removed() -> None:
    async with running_server() as server, open_client(server.url) as client:
        await error_record.record(client, "run", SENSOR, node="n1", message="a", comment="one")
        assert await error_record.annotate(client, "run", SENSOR, None)
        found = await error_record.find(client, "run", SENSOR)
        assert found is not None
        assert found.comment is None


async def test_occurrences_on_many_nodes_at_once_are_all_counted() -> None:
    async with running_server() as server, open_client(server.url) as client:

        async def fail(node: str) -> None:
            for _ in range(5):
                await error_record.record(client, "run", SENSOR, node=node, message=node)

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(fail, f"n{number}")
        found = await error_record.find(client, "run", SENSOR)
        assert found is not None
        assert found.count == 20
        assert all(seen.count == 5 for seen in found.nodes.values())


async def test_data_that_cannot_be_carried_is_kept_as_text() -> None:
    async with running_server() as server, open_client(server.url) as client:
        data: Any = {"good": 1, "bad": object(), "inner": {"worse": object}}
        await error_record.record(client, "run", SENSOR, node="n1", message="a", data=data)
        found = await error_record.find(client, "run", SENSOR)
        assert found is not None
        kept = found.nodes["n1"].data
        assert kept["good"] == 1
        assert kept["bad"].startswith("<object object")
        assert kept["inner"]["worse"] == "<class 'object'>"


async def test_long_path_is_recorded_all_the_same() -> None:
    async with running_server() as server, open_client(server.url) as client:
        long = Path.build(["x" * 120] * 8)
        await error_record.record(client, "run", long, node="n1", message="a")
        (found,) = await error_record.records(client)
        assert found.path == long
        assert await error_record.resolve(client, "run", long)


async def test_entries_that_are_no_records_are_passed_over() -> None:
    async with running_server() as server, open_client(server.url) as client:
        await client.set(P(":.moat.kv.error.run.x"), "somebody's")
        await client.set(P(":.moat.kv.error.run.y"), {"path": "y", "subsystem": 1})
        assert await error_record.records(client, resolved=None) == []
        await error_record.record(client, "run", P("x"), node="n1", message="a")
        assert len(await error_record.records(client)) == 1


def test_long_trace_loses_its_middle() -> None:
    def deep(n: int) -> None:
        deep(n - 1) if n else deeper("y" * 200)

    def deeper(text: str) -> None:
        raise ValueError(text * 100)

    with pytest.raises(ValueError, match="y") as caught:
        deep(100)
    trace = error_record.format_trace(caught.value)
    assert len(trace) < error_record.TRACE_LIMIT + 100
    assert "characters left out" in trace
    assert len(error_record.describe(caught.value)) <= error_record.MESSAGE_LIMIT


def test_own_errors_are_described_without_their_type() -> None:
    assert error_record.describe(errors.MissingVariable("x")) == "missing variable x"
    assert error_record.describe(KeyError("x")) == "KeyError: 'x'"
    assert error_record.describe(TimeoutError()) == "TimeoutError"


async def test_record_of_many_nodes_fits_a_frame() -> None:
    async with running_server() as server, open_client(server.url) as client:
        for number in range(60):
            error = RuntimeError("x" * 20_000)
            await error_record.record(
                client, "run", P("a"), node=f"n{number}", exc=error, data={"d": "x" * 15_000}
            )
        record = await error_record.find(client, "run", P("a"))
        assert record is not None
        assert (record.count, len(record.nodes)) == (60, 60)
        assert sum(seen.trace is not None for seen in record.nodes.values()) == 20
        assert record.nodes["n59"].trace is not None
