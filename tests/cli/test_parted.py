"""What the command line shows of jobs that ran without a claim, and of those that stick."""

from __future__ import annotations

import json

import pytest

import moat_kv
from moat_kv import P
from tests.cli.conftest import Moat

pytestmark = pytest.mark.anyio

STATE = P(":.moat.kv.state.any.default.j")


@pytest.fixture
async def job(moat: Moat) -> None:
    await moat.fine("code", "stay", "set", "-s", "-", stdin="import anyio\nawait anyio.sleep(9)")
    await moat.fine("run", "at", "j", "set", "-c", "stay", "-t", "0", "--on-split", "stick")


@pytest.mark.usefixtures("job")
async def test_runs_without_a_claim_are_shown_and_go_with_their_job(
    moat: Moat, client: moat_kv.Client
) -> None:
    assert json.loads(await moat.fine("run", "at", "j", "-o", "json"))["on_split"] == "stick"
    assert await moat.fine("run", "at", "j", "parts", "-o", "jsonl") == ""
    for node, result in (("n2", 7), ("n1", None)):
        value = {"started": 1.0, "stopped": 2.0, "pinged": 2.0, "node": node, "settled": "n1"}
        await client.set(P(f":.moat.kv.state.each.default.{node}.j"), {**value, "result": result})
    rows = (await moat.fine("run", "at", "j", "parts", "-o", "jsonl")).splitlines()
    assert [(row["node"], row["result"]) for row in map(json.loads, rows)] == [
        ("n1", None),
        ("n2", 7),
    ]
    refused = await moat("run", "-n", "n1", "at", "j", "parts")
    assert (refused.code, "only jobs for any node" in refused.err) == (128, True)
    await moat.fine("run", "at", "j", "delete")
    left = [row async for row in client.get_tree(P(":.moat.kv.state.each"))]
    assert left == []


@pytest.mark.usefixtures("job")
async def test_job_that_sticks_is_left_to_others_when_a_person_says_so(
    moat: Moat, client: moat_kv.Client
) -> None:
    nobody = await moat("run", "at", "j", "let-go")
    assert (nobody.code, nobody.error_line) == (3, "moat: no runner that has kept job j")
    state = {"started": 1.0, "pinged": 2.0, "node": "n7", "reason": "running"}
    await client.set(STATE, {**state, "sticks_to": "n7"})
    claim = P(":.moat.kv.claim.any.default.j")
    await client.set(claim, {"node": "n7", "session": "s"})
    held = await moat("run", "at", "j", "let-go")
    assert (held.code, held.error_line) == (1, "moat: job j: runner n7 has it, and is not dead")
    await client.delete(claim)
    done = await moat("run", "at", "j", "let-go")
    assert (done.code, done.error_line) == (0, "job j is left to others than runner n7")
    assert (await client.get(STATE)).value == state
