"""A client whose every request is noted in a history: what fault commands work with.

Errors become outcomes here and nowhere else: what says that nothing happened is a failure, what
leaves it open is unknown, an answer without agreement is pending.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from moat_kv import Client, errors
from moat_kv.path import P
from tests.faults.history import Kind, Operation, Outcome, Recorder, Value


class LineGone(Exception):
    """The client is of no use any more; what it asked last is noted."""


class Recorded:
    """Requests of one client, one at a time. Keys of the history are the texts of paths.

    `strict`: ask for the network's agreement each time.
    """

    def __init__(
        self, client: Client, recorder: Recorder, name: str, *, strict: bool = True
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._name = name
        self._strict = strict
        #: The revision of each key when it was last heard of; 0: there was nothing.
        self.known: dict[str, int] = {}

    async def read(self, key: str) -> Operation:
        """Get the entry. Raises LineGone."""
        number = self._begin(key, "read")
        operation = await self._ended(number, self._client.get(P(key), strict=self._strict))
        if operation.outcome == "ok":
            self.known[key] = operation.rev or 0
        return operation

    async def write(self, key: str, value: Value, *, expect: int | None = None) -> Operation:
        """Set the entry; with `expect` by compare-and-set. Raises LineGone."""
        kind: Kind = "write" if expect is None else "cas"
        number = self._begin(key, kind, value=value, expect=expect)
        request = self._client.set(P(key), value, expect=expect, strict=self._strict)
        operation = await self._ended(number, request)
        self._learn(operation)
        return operation

    async def delete(self, key: str, *, expect: int | None = None) -> Operation:
        """Delete the entry. Raises LineGone."""
        number = self._begin(key, "delete", expect=expect)
        request = self._client.delete(P(key), expect=expect, strict=self._strict)
        operation = await self._ended(number, request)
        if operation.outcome == "ok":
            self.known[key] = 0
        else:
            self._learn(operation)
        return operation

    def _learn(self, operation: Operation) -> None:
        rev = operation.rev if operation.outcome == "ok" else operation.have
        if rev is not None:
            self.known[operation.key] = rev

    def _begin(self, key: str, kind: Kind, **asked: Any) -> int:
        return self._recorder.begin(self._name, key, kind, strict=self._strict, **asked)

    async def _ended(self, number: int, request: Awaitable[Any]) -> Operation:
        end = self._recorder.end
        try:
            result = await request
        except errors.Unknown as exc:
            end(number, "unknown", error=type(exc).__name__)
            raise LineGone from exc
        except (errors.Disconnected, errors.RequestTimeout) as exc:
            end(number, "failed", error=type(exc).__name__)
            raise LineGone from exc
        except errors.Conflict as exc:
            return end(number, "failed", error="Conflict", have=exc.have)
        except errors.MoatKvError as exc:
            return end(number, "failed", error=type(exc).__name__)
        answer: dict[str, Any] = {"rev": result.rev}
        if "value" in result:
            answer["value"] = result.value
        if "deleted" in result:
            answer["deleted"] = result.deleted
        outcome: Outcome = "pending" if result.pending else "ok"
        if outcome == "pending":
            answer = {}
        return end(number, outcome, **answer)
