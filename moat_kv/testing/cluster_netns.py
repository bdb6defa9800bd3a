"""The network of a cluster in a box whose members have network namespaces of their own.

Used by `cluster` in the place of `cluster_links`, by root on Linux. Each member has an address on a
bridge that is in a namespace too, so that nothing of it is seen or filtered outside, and nothing
outside is reached; clients come to servers by their Unix sockets, which namespaces do not part.

A cut is real: what one member sends to another goes to a hardware address that nobody has, so the
bridge loses it, and nobody is told. Each direction of each pair is cut by itself. Every change is
the whole of what is to be, so making it again does no harm.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from moat_kv.testing import cluster_plan

#: What `ip` has to do takes some ms each; more than that is a failure, in seconds.
COMMAND_S = 30.0
#: Nobody has this hardware address.
_NOBODY = "02:00:00:00:00:00"
_BRIDGE, _PORT = "bridge0", "eth0"
_PLACES = pathlib.Path("/run/netns")
_CLONE_NEWNET = 0x40000000

_T = TypeVar("_T")


class NetnsFailed(RuntimeError):
    """Namespaces cannot be had, or a command on them has failed; the text says why."""


def check() -> None:
    """Whether namespaces can be had at all. Raises NetnsFailed with what is missing."""
    if sys.platform != "linux":
        raise NetnsFailed("network namespaces are Linux's")
    if os.geteuid() != 0:
        raise NetnsFailed("network namespaces need root (sudo); without --netns anybody can")
    _ip()


def new_prefix() -> str:
    """What the namespaces' names begin with."""
    return f"moat-{secrets.token_hex(3)}"


def namespace(plan: cluster_plan.Plan, name: str) -> str:
    """The name of a member's namespace."""
    return f"{plan.netns}-{name}"


def words(plan: cluster_plan.Plan, name: str, command: Sequence[str]) -> list[str]:
    """A command, to be run in a member's namespace."""
    return [_ip(), "netns", "exec", namespace(plan, name), *command]


def make(plan: cluster_plan.Plan) -> None:
    """Make what is missing (after a start of the machine all is). Raises NetnsFailed."""
    there = _names(plan)
    hub = namespace(plan, _BRIDGE)
    if hub not in there:
        # A bridge without its ports is of no use, and neither are they.
        remove(plan)
        there = set()
        _run("netns", "add", hub)
        _batch(hub, [f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up"])
    for member in plan.members:
        own = namespace(plan, member.name)
        if own in there:
            continue
        _run("netns", "add", own)
        _batch(
            hub,
            [
                f"link add {member.name} type veth peer name {_PORT} netns {own}",
                f"link set {member.name} master {_BRIDGE} up",
            ],
        )
        _batch(
            own,
            [
                "link set lo up",
                f"addr add {member.address}/24 dev {_PORT}",
                f"link set {_PORT} up",
            ],
        )
    arrange(plan)


def arrange(plan: cluster_plan.Plan) -> None:
    """Cut what is cut, and nothing else. Raises NetnsFailed."""
    addresses = {each.name: each.address for each in plan.members}
    for name in plan.names:
        cut = {addresses[b] for a, b in plan.cuts if a == name}
        own = namespace(plan, name)
        # (What is told here is `ADDRESS lladdr ... PERMANENT`, a line for each.)
        told = _run("-n", own, "neigh", "show", "nud", "permanent", "dev", _PORT)
        before = {line.split()[0] for line in told.splitlines() if line.strip()}
        _batch(
            own,
            [f"neigh replace {each} lladdr {_NOBODY} dev {_PORT}" for each in sorted(cut - before)]
            + [f"neigh del {each} dev {_PORT}" for each in sorted(before - cut)],
        )


def remove(plan: cluster_plan.Plan) -> None:
    """Remove all namespaces of the cluster, and with them all that is in them but processes."""
    for each in sorted(_names(plan)):
        _run("netns", "delete", each)


def within(plan: cluster_plan.Plan, name: str, call: Callable[[], _T]) -> _T:
    """What a call gives that sees the network as that member does. Raises what it raises, OSError.

    It runs in a thread of its own, for a thread that has entered a namespace stays there.
    """
    found: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            _enter(_PLACES / namespace(plan, name))
            found.append(call())
        except BaseException as exc:  # raised below, in the caller's thread
            failed.append(exc)

    thread = threading.Thread(target=run, name=f"in {name}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def _enter(place: pathlib.Path) -> None:
    handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(place))
    finally:
        os.close(handle)


def _names(plan: cluster_plan.Plan) -> set[str]:
    """Of the cluster's namespaces that are there."""
    lines = _run("netns", "list").splitlines()
    found = {line.split()[0] for line in lines if line.strip()}
    return {each for each in found if each.startswith(f"{plan.netns}-")}


def _batch(own: str, lines: Sequence[str]) -> None:
    if lines:
        _run("-n", own, "-batch", "-", text="".join(f"{line}\n" for line in lines))


def _run(*arguments: str, text: str = "") -> str:
    """What `ip` prints. Raises NetnsFailed."""
    try:
        ended = subprocess.run(
            [_ip(), *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise NetnsFailed(f"ip {' '.join(arguments)}: no end in {COMMAND_S:g} s") from exc
    if ended.returncode != 0:
        said = (ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[0]
        raise NetnsFailed(f"ip {' '.join(arguments)}: {said}")
    return ended.stdout


def _ip() -> str:
    # (Not in everybody's PATH.)
    found = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if found is None:
        raise NetnsFailed("network namespaces need the program `ip` (Debian: iproute2)")
    return found
