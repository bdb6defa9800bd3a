"""The command in the test's own process, against a server on a Unix socket."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

import moat_kv
from moat_kv import config
from moat_kv.testing import server as testing_server
from moat_kv_cli import main


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def error_line(self) -> str:
        """Its one line on standard error."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


class Moat:
    """Runs `moat kv ...`; `url` is where its server is."""

    def __init__(
        self,
        url: str,
        capture: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.url = url
        self._capture = capture
        self._monkeypatch = monkeypatch

    async def __call__(self, *args: str, stdin: str | bytes = "") -> Ended:
        """Run a command to its end."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        self._capture.readouterr()
        code = await main.invoke(["kv", *args])
        out, err = self._capture.readouterr()
        return Ended(code=code, out=out, err=err)

    async def fine(self, *args: str, stdin: str | bytes = "") -> str:
        """Run a command that has to succeed without a word on standard error; what it printed."""
        ended = await self(*args, stdin=stdin)
        assert (ended.code, ended.err) == (0, "")
        return ended.out


@pytest.fixture(autouse=True)
def settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this machine's settings reach a test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv(config.FILE_VARIABLE, raising=False)
    monkeypatch.setenv(config.URL_VARIABLE, f"unix://{tmp_path}/nobody")


@pytest.fixture
def offline(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Moat:
    """The command without a server."""
    return Moat(f"unix://{tmp_path}/nobody", capsys, monkeypatch)


@pytest.fixture
async def moat(
    anyio_backend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Moat]:
    """The command with an empty server."""
    async with testing_server.running_server("n1") as running:
        monkeypatch.setenv(config.URL_VARIABLE, running.url)
        yield Moat(running.url, capsys, monkeypatch)


@pytest.fixture
async def client(moat: Moat) -> AsyncIterator[moat_kv.Client]:
    """A client of the same server."""
    async with moat_kv.open_client(moat.url) as opened:
        yield opened


@pytest.fixture
async def answer(moat: Moat) -> None:
    await moat.fine("code", "the.answer", "set", "-s", "-", stdin="return 42")
