"""The simulated bus as a process: its first line, its commands, its end."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from moat_kv.testing import ports

# The process is the same whichever loop the test itself runs on; one test runs it on both.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

WARM = "28.0000BEDC0001"
COMMAND = [sys.executable, "-W", "error", "-m", "moat_kv.testing.onewire"]


class Child:
    """The process, its commands and its answers."""

    def __init__(self, process: anyio.abc.Process) -> None:
        assert process.stdout is not None
        self.process = process
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def line(self) -> Any:
        with anyio.fail_after(30):
            return json.loads(await self._lines.receive_until(b"\n", 65536))

    async def do(self, text: str) -> Any:
        assert self.process.stdin is not None
        await self.process.stdin.send(text.encode() + b"\n")
        return await self.line()


@asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[Child]:
    """Start it; kill it at the end of the block unless it has ended."""
    async with await anyio.open_process([*COMMAND, *arguments], stderr=None) as process:
        try:
            yield Child(process)
        finally:
            if process.returncode is None:
                process.kill()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_commands_change_what_a_client_sees(onewire: Any, backend: str) -> None:
    async with started("--backend", backend) as child:
        where = await child.line()
        async with onewire.bus.Bus(where["host"], where["port"]) as ow:
            device = onewire.bus.device_of(WARM)
            for text in (
                f'{{"do": "drift", "name": "{WARM}", "celsius_per_s": 0}}',
                f'{{"do": "set_temperature", "name": "{WARM}", "celsius": 7}}',
            ):
                assert await child.do(text) == {"ok": True}
            assert await ow.temperature(device) == 7
            assert await child.do(f'{{"do": "unplug", "name": "{WARM}"}}') == {"ok": True}
            assert device not in await ow.devices(["28"])
            assert await child.do('{"do": "stop"}') == {"ok": True}
            with pytest.raises(onewire.bus.OwGone):
                await ow.dir("/")
            assert await child.do('{"do": "start"}') == {"ok": True}
            assert await ow.dir("/")
            state = await child.do('{"do": "state"}')
            assert state["devices"][WARM]["plugged"] is False
        assert await child.do('{"do":"exit"}') == {"ok": True}
        with anyio.fail_after(30):
            assert await child.process.wait() == 0


async def test_bad_command_is_answered_and_changes_nothing() -> None:
    async with started() as child:
        await child.line()
        for text in (
            "nonsense",
            "[]",
            '{"do": "nope"}',
            '{"do": "__init__"}',
            '{"do": "unplug"}',
            '{"do": "unplug", "name": "28.000000000000"}',
            '{"do": "set", "slam": 1}',
            '{"do": "set", "port": true}',
        ):
            answer = await child.do(text)
            assert answer["ok"] is False
            assert answer["error"]
        assert (await child.do('{"do": "state"}'))["ok"] is True


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
async def test_signal_ends_it_cleanly_with_a_client_connected(
    number: signal.Signals, backend: str
) -> None:
    async with started("--backend", backend) as child:
        where = await child.line()
        async with await anyio.connect_tcp(where["host"], where["port"]):
            child.process.send_signal(number)
            with anyio.fail_after(30):
                assert await child.process.wait() == 0


async def test_end_of_input_does_not_end_it(onewire: Any) -> None:
    async with started("--port", str(ports.free_port())) as child:
        where = await child.line()
        assert child.process.stdin is not None
        await child.process.stdin.aclose()
        async with onewire.bus.Bus(where["host"], where["port"]) as ow:
            assert await ow.dir("/")
        assert child.process.returncode is None


async def test_devices_come_from_a_file(onewire: Any, tmp_path: Path) -> None:
    file = tmp_path / "devices.json"
    given = [{"name": "10.000000000001", "temperature": 3}, {"name": "05.000000000001", "bus": 1}]
    file.write_text(json.dumps(given))
    async with started("--devices", str(file)) as child:
        where = await child.line()
        async with onewire.bus.Bus(where["host"], where["port"]) as ow:
            assert await ow.dir("/") == ["/10.000000000001", "/05.000000000001"]
            assert await ow.temperature(onewire.bus.device_of("10.000000000001")) == 3


@pytest.mark.parametrize(
    "text", ["{}", "[1]", "[", '[{"name": "99.000000000001"}]', '[{"name": "x"}]'], ids=str
)
async def test_bad_devices_are_bad_usage(tmp_path: Path, text: str) -> None:
    file = tmp_path / "devices.json"
    file.write_text(text)
    done = await anyio.run_process([*COMMAND, "--devices", str(file)], check=False)
    assert done.returncode == 2
    assert str(file) in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


async def test_port_in_use_is_told_in_a_line() -> None:
    async with started() as child:
        where = await child.line()
        done = await anyio.run_process([*COMMAND, "--port", str(where["port"])], check=False)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {where['port']}" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
