"""`moat kv server NAME`: one server, until it is told to stop.

Reads the options, opens the listeners and the engine, and hands both to `moat_kv.server`; tells
whoever waits for it when clients can come. It never serves beyond this machine unasked.
"""

from __future__ import annotations

import functools
import gc
import ipaddress
import os
import pathlib
import re
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import asyncclick as click

from moat_kv import config
from moat_kv_cli import command, engines, staying

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


def _duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = _DURATION.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no time; write 1s, 500ms or 0", ctx, param)
    return float(match[1]) * _UNIT_S[match[2]]


def _name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise click.BadParameter(
            f"{value!r}: a server's name starts with a letter, "
            "and has letters, digits, - and _, 64 at most",
            ctx,
            param,
        )
    return value


@click.command(
    cls=command.Command,
    example="moat kv server n1\nmoat kv server n1 --data /var/lib/moat --unix /run/moat.sock\n"
    "moat kv server n1 --engine nats://one:4222,two:4222",
)
@click.argument("name", callback=_name)
@click.option("--data", metavar="DIR", help="Where its files are; the platform's state folder.")
@click.option("--host", help="Where it listens. [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Its port; 0 takes a free one. [27586]")
@click.option("--unix", metavar="FILE", help="Listen on a Unix socket, too.")
@click.option(
    "--engine",
    metavar="NAME|URL",
    help="What holds the truth: sqlite, memory, or nats://host:4222,.../NETWORK. [sqlite]",
)
@click.option(
    "--sync",
    "sync_s",
    metavar="TIME",
    callback=_duration,
    help="Sync to disk this often, such as 1s, and lose as much in a power cut; 0: always. [0]",
)
@click.option("--insecure", is_flag=True, help="Serve other machines, though there is no login.")
@click.option("--ready-fd", type=int, metavar="N", help="Write its URLs here when it is ready.")
@command.pass_invocation
async def server(
    invocation: command.Invocation,
    /,
    name: str,
    insecure: bool,
    ready_fd: int | None,
    **given: Any,
) -> int:
    """Run the server NAME until SIGTERM or SIGINT.

    It keeps the tree on disk and serves clients on this machine. Everything has a default.
    """
    settings = invocation.config.server
    options = {key: getattr(settings, key) for key in given}
    options |= {key: value for key, value in given.items() if value is not None}
    data = _place(options["data"]) or config.default_data(name)
    from moat_kv.server import times as server_times
    from moat_kv.server.server import Server

    invocation.start_logging()
    await _check_host(options["host"], insecure)
    async with AsyncExitStack() as stack:
        listeners, urls = await _listen(stack, options)
        engine = engines.make(
            options["engine"],
            server=name,
            data=data,
            sync_s=options["sync_s"],
            access=settings.nats,
        )
        times = server_times.Times(lease_s=settings.lease_s, renew_s=settings.renew_s)
        if engine.shared:
            server_times.check(times, silence_s=server_times.LEADER_LOSS_S)
        serve = functools.partial(Server(name, engine, urls=urls, times=times).serve, listeners)
        return await staying.until_signal(serve, lambda _: _told(name, urls, ready_fd))


def _place(text: str | None) -> pathlib.Path | None:
    return pathlib.Path(text).expanduser().absolute() if text else None


# Where it listens -------------------------------------------------------------------------------


async def _check_host(host: str, insecure: bool) -> None:
    """Raises UsageError for an address that others can reach."""
    try:
        found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise click.UsageError(f"--host {host}: {exc.strerror or exc}") from exc
    if insecure:
        return
    for *_rest, address in found:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
            raise click.UsageError(
                f"--host {host} can be reached from other machines, and there is no login: whoever "
                "gets there could change everything and run code; --insecure does it nevertheless"
            )


async def _listen(
    stack: AsyncExitStack, options: dict[str, Any]
) -> tuple[list[anyio.abc.Listener[Any]], list[str]]:
    """The open listeners, and the URLs that lead to them. Raises ClickException."""
    host, port, unix = options["host"], options["port"], options["unix"]
    listeners: list[anyio.abc.Listener[Any]] = []
    urls = []
    try:
        tcp = await anyio.create_tcp_listener(local_host=host, local_port=port)
    except OSError as exc:
        raise click.ClickException(
            f"cannot listen on {host} port {port}: {_reason(exc)} (--port takes another)"
        ) from exc
    await stack.enter_async_context(tcp)
    listeners.append(tcp)
    bound = tcp.extra(anyio.abc.SocketAttribute.local_port)
    urls.append(f"tcp://{f'[{host}]' if ':' in host else host}:{bound}")
    if (place := _place(unix)) is not None:
        listeners.append(await stack.enter_async_context(_unix_listener(place)))
        urls.append(f"unix://{place}")
    return listeners, urls


@asynccontextmanager
async def _unix_listener(place: pathlib.Path) -> AsyncIterator[anyio.abc.Listener[Any]]:
    await _free_socket(place)
    try:
        # Whoever can open it can change everything, so it is its owner's alone.
        listener = await anyio.create_unix_listener(place, mode=0o600)
    except OSError as exc:
        raise click.ClickException(f"cannot listen on {place}: {_reason(exc)}") from exc
    async with listener:
        try:
            yield listener
        finally:
            _remove(place)


def _remove(place: pathlib.Path) -> None:
    place.unlink(missing_ok=True)


def _is_socket(place: pathlib.Path) -> bool:
    return stat.S_ISSOCK(place.lstat().st_mode)


async def _free_socket(place: pathlib.Path) -> None:
    """A socket that nobody serves any more is taken over, and nothing else is."""
    try:
        if not _is_socket(place):
            raise click.ClickException(f"cannot listen on {place}: it is there and is no socket")
        stream = await anyio.connect_unix(place)
    except OSError:
        return
    await stream.aclose()
    raise click.ClickException(f"cannot listen on {place}: another server does")


def _reason(exc: OSError) -> str:
    return exc.strerror.lower() if exc.strerror else str(exc)


# Ready -------------------------------------------------------------------------------------------


def _told(name: str, urls: list[str], ready_fd: int | None) -> str:
    """Tell everybody where it is; returns the line for systemd."""
    # What was loaded stays: without this, each full collection would look at all of it, and stop
    # the server for 0.2 s for every million entries.
    gc.freeze()
    print(f"server {name} is ready: {' '.join(urls)}", flush=True)
    if ready_fd is not None:
        with os.fdopen(ready_fd, "w") as file:
            file.write("".join(url + "\n" for url in urls))
    return f"serving {' '.join(urls)}"
