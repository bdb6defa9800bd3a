"""Telling systemd how the server does, without a library for it (sd_notify(3)).

Called by `moat kv server`. Where systemd has not asked to be told, nothing happens.
"""

from __future__ import annotations

import os
import socket

import anyio


def notify(state: str) -> bool:
    """Send one state, such as `READY=1` or `STOPPING=1`; whether somebody listens for it.

    Raises OSError if there is a socket to be told but it cannot be reached.
    """
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return False
    if place[0] == "@":  # a name in Linux's abstract namespace
        place = "\0" + place[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.connect(place)
        line.sendall(state.encode())
    return True


async def feed_watchdog() -> None:
    """Tell systemd that the event loop turns, twice in the time that it allows; else return.

    Runs until cancelled if the unit has `WatchdogSec=`.
    """
    limit_us = os.environ.get("WATCHDOG_USEC", "")
    here = str(os.getpid())
    if not limit_us.isdecimal() or os.environ.get("WATCHDOG_PID", here) != here:
        return
    while notify("WATCHDOG=1"):  # noqa: ASYNC110  # no event to wait for: time itself is it
        await anyio.sleep(int(limit_us) / 2e6)
