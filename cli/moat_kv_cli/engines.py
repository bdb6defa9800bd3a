"""Which engine a server gets: by name, or a network by its URL.

Called by `moat kv server`. On a terminal it shows how far the load from a network has come, since
a newcomer takes the whole tree before it serves.
"""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import asyncclick as click

if TYPE_CHECKING:
    from collections.abc import Callable

    from moat_kv.config import NatsConfig
    from moat_kv.engine.base import Engine

#: The entry point that serves these schemes.
_SCHEMES = {"nats": "nats", "tls": "nats"}


def make(
    text: str, *, server: str, data: pathlib.Path, sync_s: float, access: NatsConfig
) -> Engine:
    """The engine of that name or URL. Raises UsageError if there is none, BadConfig."""
    from importlib import metadata

    found = {each.name: each for each in metadata.entry_points(group="moat_kv.engine")}
    scheme, is_url, _ = text.partition("://")
    name = _SCHEMES.get(scheme, scheme) if is_url else text
    if name not in found:
        known = ", ".join(sorted(found)) or "none is installed"
        raise click.UsageError(f"--engine: no engine {name!r}; there is: {known}")
    if name == "nats":
        return _network(found[name], text, server, data, access)
    engine: Callable[..., Engine] = found[name].load()
    if name == "memory":
        return engine()
    return engine(data / f"tree.{name}", sync=sync_s or "always")


def _network(
    entry_point: Any, url: str, server: str, data: pathlib.Path, access: NatsConfig
) -> Engine:
    from moat_kv.engine.network import NetworkEngine

    with _explained():
        engine = entry_point.load()
    remote = engine(
        url, access=access, name=f"moat-kv {server}", progress=progress("taking the tree")
    )
    # What this server keeps of a network is worth nothing in another one.
    file = data / f"copy.{remote.network}.sqlite"
    return NetworkEngine(remote, file, origin=f"{server}:log-{secrets.token_hex(4)}")


def make_network_alone(url: str, *, access: NatsConfig) -> Engine:
    """The log of a network, without a copy of it and without going on when it is out of reach.

    Raises UsageError, BadConfig.
    """
    with _explained():
        from moat_kv.engine.nats import NatsEngine
    scheme = url.partition("://")[0]
    if scheme not in _SCHEMES:
        raise click.UsageError(f"{url}: a network is nats://host:port,host:port/NETWORK")
    return NatsEngine(url, access=access, name="moat-kv", progress=progress("taking the tree"))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say what to install where nats-py is missing."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "nats":
            raise
        raise click.UsageError(
            "a network needs nats-py; pip install 'moat-kv-fleet[nats]' has it"
        ) from exc


def progress(what: str) -> Callable[[int, int], None]:
    """Shows a bar on the terminal, from the first call to that with all of it."""
    return _bar(what) if sys.stderr.isatty() else lambda done, total: None


def _bar(what: str) -> Callable[[int, int], None]:
    from rich import console
    from rich import progress as bars

    shown = bars.Progress(
        bars.TextColumn(what),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        transient=True,
    )
    task = shown.add_task("load", total=None)

    def tell(done: int, total: int) -> None:
        shown.update(task, completed=done, total=total)
        if not shown.live.is_started:
            shown.start()
        if done >= total:
            shown.stop()

    return tell
