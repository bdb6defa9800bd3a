"""Whether servers have the same tree, and where they do not: with few requests, by hashes.

Used by `moat kv net hash` and by fault tests, with one client for each server. Subtrees that have
the same hash everywhere are not looked into; a name that differs among very many is found by way of
buckets. The servers may be written to meanwhile: what is compared is of the same revision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import anyio

from moat_kv import errors
from moat_kv.client import hashes
from moat_kv.entry import SYSTEM
from moat_kv.path import Path
from moat_kv.tree.hashing import NOTHING, Sum

if TYPE_CHECKING:
    from moat_kv import Client

_Name = TypeVar("_Name", bytes, Path)

#: How long servers are given to come to the same revision, in seconds, each time; and how often.
WAIT_S = 2.0
ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry that not all servers have alike; or all system data, where it is not told which."""

    path: Path
    rev: int
    """The revision that was compared."""
    found: tuple[Sum, ...]
    """What each server has there, in the order of the clients."""


async def hash_all(
    clients: Sequence[Client], path: Path, *, prefix: bytes = b""
) -> list[hashes.SubtreeHash]:
    """The hash of one subtree by each client's server, all of the same revision.

    Raises Behind if the servers do not come to one within `ATTEMPTS`, and what a read raises.
    """
    found = await _ask_all(clients, path, prefix, 0)
    newest = lead = 0
    for _ in range(ATTEMPTS):
        revs = [one.rev for one in found]
        before, newest = newest, max(revs)
        if min(revs) == newest:
            return found
        # First those that lag have to come as far as the others. If these are further by then,
        # somebody writes: then a revision that is still to come for all. (If nobody does any more,
        # all wait in vain, and have the same by then.)
        found = await _ask_all(clients, path, prefix, newest + lead)
        lead = max(2 * lead, newest - before if before else 1)
    raise errors.Behind(min(one.rev for one in found), max(one.rev for one in found))


async def _ask_all(
    clients: Sequence[Client], path: Path, prefix: bytes, rev: int
) -> list[hashes.SubtreeHash]:
    found: dict[int, hashes.SubtreeHash] = {}
    failed: list[errors.MoatKvError] = []

    async def ask(index: int, client: Client) -> None:
        try:
            found[index] = await client.hash(path, prefix=prefix, rev=rev, wait_s=WAIT_S)
        except errors.MoatKvError as exc:
            failed.append(exc)

    async with anyio.create_task_group() as tasks:
        for index, client in enumerate(clients):
            tasks.start_soon(ask, index, client)
    if failed:
        raise failed[0]
    return [found[index] for index in range(len(clients))]


async def differences(
    clients: Sequence[Client], path: Path, *, limit: int = 100
) -> list[Difference]:
    """The entries at and below a path that not all servers have alike, at most `limit` of them.

    For one of them two or three requests to each server, and one for each level above it. Raises as
    `hash_all`.
    """
    different: list[Difference] = []
    todo: list[tuple[Path, bytes]] = [(path, b"")]
    while todo and len(different) < limit:
        path, prefix = todo.pop()
        found = await hash_all(clients, path, prefix=prefix)
        rev = found[0].rev
        own = tuple(one.own for one in found)
        if not prefix and _differ(own):
            different.append(Difference(path=path, rev=rev, found=own))
        size = max(one.bucket_size for one in found)
        if size:
            buckets = [one.bucketed(size) for one in found]
            todo += [(path, name) for name in _differing(buckets)]
            continue
        children = [one.children for one in found]
        for name in _differing(children):
            if path or name[0] is not SYSTEM:
                todo.append((path + name, b""))
            else:
                parts = tuple(each.get(name, NOTHING) for each in children)
                different.append(Difference(path=name, rev=rev, found=parts))
    return different[:limit]


def _differ(sums: Sequence[Sum]) -> bool:
    return any(one != sums[0] for one in sums)


def _differing(parts: Sequence[Mapping[_Name, Sum]]) -> list[_Name]:
    names = {name: None for each in parts for name in each}
    return [name for name in names if _differ([each.get(name, NOTHING) for each in parts])]
