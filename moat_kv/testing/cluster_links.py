"""The network of a cluster in a box: one process with a proxy for each link.

`cluster` starts it as `python -m moat_kv.testing.cluster_links FOLDER` and gives it orders by
`tell`, each a line of JSON on a port of loopback, together with the token of the cluster's file.
An order is the whole of what is cut and how slow it is, so that giving it again does no harm. It
knows nothing of what passes.
"""

from __future__ import annotations

import functools
import hmac
import importlib.util
import json
import os
import pathlib
import random
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

from moat_kv.testing import background, cluster_plan, proxy

#: An order is carried out within this time, in seconds.
ORDER_S = 20.0
_ORDER_BYTES = 1024 * 1024


def tell(plan: cluster_plan.Plan, *, reset: frozenset[str] = frozenset()) -> None:
    """Make the network what the plan says. Raises OSError if its process does not answer.

    `reset`: all lines of these names break, as if they had been given up.
    """
    order = _order(plan, reset) | {"token": plan.token}
    port = plan.member(cluster_plan.LINKS).port
    with socket.create_connection(("127.0.0.1", port), timeout=ORDER_S) as line:
        line.sendall(json.dumps(order).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = line.recv(4096)
            if not chunk:
                raise ConnectionError("the links of the cluster did not take the order")
            answer += chunk


def _order(plan: cluster_plan.Plan, reset: frozenset[str] = frozenset()) -> dict[str, Any]:
    return {
        "cuts": sorted(plan.cuts),
        "delay_s": plan.delay_s,
        "hold_share": plan.hold_share,
        "reset": sorted(reset),
    }


async def _serve(folder: pathlib.Path) -> None:
    plan = cluster_plan.load(folder)
    if plan is None:
        raise SystemExit(f"there is no cluster in {folder}")
    async with AsyncExitStack() as stack:
        # Bound and not listened to: who connects there is refused, and nobody else can take it.
        dead = stack.enter_context(socket.socket())
        dead.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        dead.bind(("127.0.0.1", plan.dead_port))
        doors, proxies = [], {}
        for link in plan.links:
            doors.append(await stack.enter_async_context(await _listener(link.port)))
            target = ("127.0.0.1", link.target_port)
            proxies[link] = proxy.Proxy(link.port, target, random.Random(link.port))
        _arrange(proxies, _order(plan))
        orders = await _listener(plan.member(cluster_plan.LINKS).port)
        await stack.enter_async_context(orders)
        answer = functools.partial(_answer, token=plan.token, proxies=proxies)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_end_on_signal, tasks.cancel_scope)
            tasks.start_soon(orders.serve, answer)
            for door, each in zip(doors, proxies.values(), strict=True):
                tasks.start_soon(door.serve, functools.partial(_carry, each))
            with os.fdopen(background.READY_FD, "w") as ready:
                ready.write("ready\n")


async def _listener(port: int) -> anyio.abc.Listener[anyio.abc.SocketStream]:
    return await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)


async def _carry(link: proxy.Proxy, near: anyio.abc.SocketStream) -> None:
    """One line; what goes wrong with it does not harm the others."""
    try:
        await link.serve(near)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()


async def _end_on_signal(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()


async def _answer(
    line: anyio.abc.SocketStream,
    *,
    token: str,
    proxies: Mapping[cluster_plan.Link, proxy.Proxy],
) -> None:
    """One order; whoever does not know the token is not answered."""
    async with line:
        try:
            with anyio.fail_after(ORDER_S):
                text = await BufferedByteReceiveStream(line).receive_until(b"\n", _ORDER_BYTES)
                order = json.loads(text)
                if not hmac.compare_digest(str(order.pop("token", "")), token):
                    return
                _arrange(proxies, order)
                await line.send(b"done\n")
        except (ValueError, OSError, TimeoutError, anyio.EndOfStream, *_BROKEN) as exc:
            print(f"an order that is none: {exc!r}", file=sys.stderr, flush=True)


_BROKEN = (anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound)


def _arrange(proxies: Mapping[cluster_plan.Link, proxy.Proxy], order: Mapping[str, Any]) -> None:
    """Make all links what the order says."""
    cuts = {(a, b) for a, b in order["cuts"]}
    reset = set(order["reset"])
    for link, each in proxies.items():
        ways: list[proxy.Way] = []
        if (link.source, link.target) in cuts:
            ways.append("there")
        if (link.target, link.source) in cuts:
            ways.append("back")
        each.slow(order["delay_s"], hold_share=order["hold_share"])
        each.heal(reset=bool(reset & {link.source, link.target}))
        if ways:
            each.cut(*ways)


def main() -> None:
    """The process's entry."""
    fast = importlib.util.find_spec("uvloop") is not None
    anyio.run(_serve, pathlib.Path(sys.argv[1]), backend_options={"use_uvloop": fast})


if __name__ == "__main__":
    main()
