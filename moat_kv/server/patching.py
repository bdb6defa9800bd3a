"""Patches: values that the server computes from the present one, by compare-and-set.

Handed over by the patch action. Patches of one path take turns, so that each is computed once, and
anew only where a write of another kind came between. Much of this runs in the engine's task, where
nothing may be raised.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from moat_kv import codec, errors
from moat_kv.engine.base import Outcome
from moat_kv.path import Path
from moat_kv.proto.messages import Request
from moat_kv.server import writes
from moat_kv.server.connection import WRITE_BYTES, Connection
from moat_kv.tree import patch as patch_module

if TYPE_CHECKING:
    from moat_kv.entry import Write
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

#: So often a patch is tried anew when another write came between; each time somebody has won.
TRIES = 1_000
STOPPING = "the server is stopping"


class Patch:
    """One request to patch, until it is answered."""

    def __init__(self, connection: Connection, request: Request, path: Path) -> None:
        self.path = path
        self.connection = connection
        self._request = request
        self._value = b""
        self._tries = 0
        head = connection.server.store.head(path)
        present = head.value if head is not None else None
        self._operand = request.value or b""
        # The operand and the new value.
        self._held_bytes = WRITE_BYTES + 2 * len(self._operand) + len(present or b"")
        connection.hold(self._held_bytes)

    def write(self) -> Write:
        """The write that carries it out now. Raises what refuses it."""
        connection, arguments = self.connection, self._request.arguments
        server = connection.server
        if server.stopping:
            raise errors.Detached(STOPPING)
        self._tries += 1
        head = server.store.head(self.path)
        old, rev = patch_module.ABSENT, 0
        if head is not None and head.value is not None:
            old, rev = codec.unpack(head.value), head.rev
        op = arguments["op"]
        operand = codec.unpack(self._operand)
        value = codec.pack(patch_module.patched(str(self.path), op, old, operand))
        if len(value) > server.frame_limit:
            reason = f"the new value would have {len(value)} bytes, above {server.frame_limit}"
            raise errors.CannotPatch(str(self.path), op, reason)
        codec.check(value)
        options: dict[str, Any] = {"path": self.path}
        options |= {name: arguments[name] for name in ("fence", "session") if name in arguments}
        write = writes.make_write(connection, "patch", self.path, value, options)
        write.expect = rev
        self._value = value
        return write

    def came_between(self, outcome: Outcome) -> bool:
        """Whether another write came between, so that it is worth another try."""
        return isinstance(outcome, errors.Conflict) and self._tries < TRIES

    def answer(self, outcome: Outcome) -> None:
        connection, seq = self.connection, self._request.seq
        connection.answered(self._held_bytes)
        if isinstance(outcome, errors.MoatKvError):
            connection.fail(seq, outcome)
            return
        record = outcome[0]
        fields = {"rev": record.rev, "at": record.at, "id": record.id}
        connection.reply(seq, fields, self._value)


class Patches:
    """All patches that are under way, in turn for each path."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # The first of each is in the engine's hands.
        self._waiting: dict[Path, deque[Patch]] = {}

    def add(self, patch: Patch) -> None:
        """Carry it out when its turn has come, and answer it."""
        waiting = self._waiting.setdefault(patch.path, deque())
        waiting.append(patch)
        if len(waiting) == 1:
            self._work(patch.path, waiting)

    def _work(self, path: Path, waiting: deque[Patch]) -> None:
        """Hand the next one to the engine; answer those that are refused before that."""
        while waiting:
            refused: errors.MoatKvError
            try:
                write = waiting[0].write()
            except errors.MoatKvError as exc:
                refused = exc
            except Exception as exc:
                logger.exception("a patch of %s failed", path)
                refused = errors.CannotPatch(str(path), "patch", f"{type(exc).__name__}: {exc}")
            else:
                self._server.submit_in_turn(
                    waiting[0].connection,
                    (write,),
                    lambda outcome: self._done(path, waiting, outcome),
                )
                return
            waiting.popleft().answer(refused)
        del self._waiting[path]

    def _done(self, path: Path, waiting: deque[Patch], outcome: Outcome) -> None:
        if not waiting[0].came_between(outcome):
            waiting.popleft().answer(outcome)
        self._work(path, waiting)
