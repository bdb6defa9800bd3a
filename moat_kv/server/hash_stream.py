"""The answer to hash: a walk over a snapshot, then the hashes of its parts.

Opened by `read_actions.hash_`, pulled by a connection's writer. The store tells the snapshot what
is written while it walks. What is computed is in `tree.hashing`; nothing here knows of hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import msgpack

from moat_kv.proto import messages, rows
from moat_kv.proto.messages import State
from moat_kv.server import streams
from moat_kv.server.store import Store
from moat_kv.tree.hashing import Snapshot, Sum

_pack = msgpack.Packer(autoreset=True).pack


class HashStream(streams.Answer):
    """A snapshot's hashes, when it is done."""

    def __init__(
        self, seq: int, store: Store, snapshot: Snapshot, ready: Callable[[], None]
    ) -> None:
        super().__init__(seq)
        self._store = store
        self._snapshot = snapshot
        self._ready = ready
        self._began = anyio.Event()
        self._rows: Iterator[bytes] | None = None
        self._closed = False

    @property
    def waits(self) -> bool:
        """Its revision has not come yet."""
        return self._snapshot.waits

    async def wait(self, wait_s: float) -> None:
        """Give the revision that is waited for so many seconds to come."""
        if self.waits and not self._closed:
            self._snapshot.on_begin = self._began.set
            self._register()
            with anyio.move_on_after(wait_s):
                await self._began.wait()
            self._snapshot.begin()
        self._ready()

    def _register(self) -> None:
        """From now on the store tells the snapshot of changes, until it is done or nobody asks."""
        self._store.snapshots.append(self._snapshot)

    def produce(self) -> list[bytes]:
        snapshot = self._snapshot
        if self.waits:
            return []
        if snapshot.rev is None:
            # Not before its turn: each snapshot costs every write a little.
            self._register()
            snapshot.begin()
        if not snapshot.is_done:
            snapshot.step()
            return []
        if self._rows is None:
            self._forget()
            self._rows = _packed_rows(snapshot)
            return [rows.pack_item(self._seq, self._slice(), _summary(snapshot))]
        part = self._slice()
        if part:
            return [rows.pack_item(self._seq, part, {})]
        self.finished = True
        return [messages.pack((self._seq, State.END, {}, None))]

    def _slice(self) -> list[bytes]:
        assert self._rows is not None
        part = []
        size = 0
        for row in self._rows:
            part.append(row)
            size += len(row)
            if len(part) >= streams.SLICE_ROWS or size >= streams.SLICE_BYTES:
                break
        return part

    @property
    def walks(self) -> bool:
        return not self.waits and not self._snapshot.is_done

    @property
    def more(self) -> bool:
        return not self.waits and not self.finished

    def close(self) -> None:
        self._closed = True
        self._began.set()
        self._forget()

    def _forget(self) -> None:
        if self._snapshot in self._store.snapshots:
            self._store.snapshots.remove(self._snapshot)


def _summary(snapshot: Snapshot) -> dict[str, Any]:
    total, own = snapshot.total, snapshot.own
    return {
        "rev": snapshot.rev,
        "hash": total.packed,
        "entries": total.entries,
        "own": own.packed if own.entries else None,
    }


def _packed_rows(snapshot: Snapshot) -> Iterator[bytes]:
    def row(name: object, part: Sum) -> bytes:
        packed: bytes = _pack([name, part.packed, part.entries])
        return packed

    for name, part in snapshot.children.items():
        yield row(msgpack.ExtType(messages.PATH_EXTENSION, name), part)
    for prefix, part in snapshot.buckets.items():
        yield row(prefix, part)
