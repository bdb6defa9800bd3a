"""`moat kv lock`: a command runs under a lock, and its exit code is passed on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path as FilePath

import anyio
import pytest

from moat_kv import Client, P, errors
from moat_kv.coord import aio
from moat_kv.testing.server import running_server
from moat_kv_cli import lock as lock_module
from tests.cli.conftest import Moat
from tests.cli.processes import MOAT, PATIENCE_S, environment

pytestmark = pytest.mark.anyio


async def test_a_command_runs_under_the_lock_and_its_code_is_passed_on(
    moat: Moat, client: Client, tmp_path: FilePath
) -> None:
    note = tmp_path / "note"
    words = f'echo "$MOAT_KV_LOCK_FENCE $MOAT_KV_LOCK_ENTRY" > {note}; exit 3'
    ended = await moat("lock", "a.b", "--", "sh", "-c", words)
    assert (ended.code, ended.out, ended.err) == (3, "", "")
    fence, entry = note.read_text().split()
    assert P(entry).startswith(P(":.moat.kv.lock.a.b"))
    with pytest.raises(errors.StaleFence):
        await client.set(P("x"), 1, fence=(P(entry), int(fence)))
    assert (await moat("lock", "a.b", "--", "true")).code == 0
    assert (await moat("lock", "a", "--", "sh", "-c", "kill -TERM $$")).code == 128 + 15


async def test_one_that_does_not_wait_gets_its_own_code(moat: Moat, client: Client) -> None:
    async with aio.Process(client) as process, process.lock(P("a"), shared=True):
        for wait in ("0", "0.1"):
            ended = await moat("lock", "--wait", wait, "a", "--", "true")
            assert (ended.code, ended.error_line) == (4, f"moat: a is locked by {client.name}")
        assert (await moat("lock", "--shared", "--ttl", "5", "a", "--", "true")).code == 0


async def test_what_cannot_be_run_is_told(moat: Moat, tmp_path: FilePath) -> None:
    assert (await moat("lock", "a", "--", "no-such-command-here")).code == 127
    (tmp_path / "file").touch()
    ended = await moat("lock", "a", "--", str(tmp_path / "file"))
    assert (ended.code, ended.error_line) == (126, f"moat: {tmp_path}/file: cannot be run")
    assert (await moat("lock", "a")).code == 128
    assert (await moat("lock", "a", "--wait", "-1", "--", "true")).code == 128


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["willing", "stubborn"])
async def test_a_command_whose_lock_is_lost_is_ended(
    moat: Moat, client: Client, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    monkeypatch.setattr(lock_module, "END_S", 0.2)
    note = tmp_path / "note"
    words = f'{trap}echo "$$ $MOAT_KV_LOCK_ENTRY" > {note}.new; mv {note}.new {note}; '
    words += "while true; do sleep 0.05; done"

    async def lose() -> None:
        while not note.exists():
            await anyio.sleep(0.01)
        await client.delete(P(note.read_text().split()[1]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lose)
        with anyio.fail_after(PATIENCE_S):
            ended = await moat("lock", "a", "--", "sh", "-c", words)
    assert ended.code == 4
    assert "of a (fence" in ended.error_line
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text().split()[0]), 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_signals_reach_the_command(tmp_path: FilePath) -> None:
    async with running_server(socket=tmp_path / "s"):
        await anyio.to_thread.run_sync(_signal_it, tmp_path)


def _signal_it(tmp_path: FilePath) -> None:
    note = tmp_path / "note"
    words = f"trap 'exit 7' INT TERM; echo > {note}; while true; do sleep 0.05; done"
    for number in (signal.SIGTERM, signal.SIGINT):
        note.unlink(missing_ok=True)
        process = subprocess.Popen(
            [*MOAT, "lock", "a", "--", "sh", "-c", words],
            env=environment(tmp_path),
            stdin=subprocess.DEVNULL,
        )
        try:
            while not note.exists():
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 7
        finally:
            process.kill()
            process.wait()
