"""Writes, as users ask for them, turned into the arguments that travel.

Used by `client` and `mirror`. Pure: no I/O, no knowledge of lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from moat_kv import codec, errors
from moat_kv.client import results
from moat_kv.notgiven import NotGiven, NotGivenType
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.session import Session

#: A path and the revision that it must have.
Guard: TypeAlias = "tuple[Path, int]"
#: A session, or its id.
SessionLike: TypeAlias = "Session | str"
ChainLike: TypeAlias = "results.Chain | NotGivenType | None"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What each write of a client (or a view of one) carries, unless it says otherwise."""

    fence: Guard | None = None
    session: SessionLike | None = None


UNBOUND = Binding()


@dataclass(frozen=True, kw_only=True)
class WriteOp:
    """One write of a batch; made by `Client.op_set` and `Client.op_delete`."""

    path: Path
    value: bytes | None
    """Packed; None deletes."""
    options: dict[str, Any] = field(default_factory=dict)


def check_path(path: Path) -> None:
    """Raises TypeError for anything but a path; a text is told what to do."""
    if not isinstance(path, Path):
        hint = f"; write P({path!r})" if isinstance(path, str) else ""
        raise TypeError(f"a Path is needed here, not {type(path).__name__}{hint}")


def options_of(
    path: Path,
    epoch: str,
    binding: Binding,
    *,
    chain: ChainLike = NotGiven,
    expect: int | None = None,
    idem: bool = False,
    guard: Guard | None = None,
    fence: Guard | None = None,
    session: SessionLike | None = None,
    ttl_s: float | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """The options of a write that are not at their defaults.

    Raises Conflict if the chain is of another epoch, ValueError for `chain` beside `expect`.
    """
    options: dict[str, Any] = {}
    if chain is not NotGiven:
        if expect is not None:
            raise ValueError("chain and expect say the same; give one of them")
        expect = _expected(path, chain, epoch)
    if expect is not None:
        options["expect"] = expect
    if idem:
        options["idem"] = True
    if guard is not None:
        options["guard"] = _guard(guard)
    fence = binding.fence if fence is None else fence
    if fence is not None:
        options["fence"] = _guard(fence)
    session = binding.session if session is None else session
    if session is not None:
        options["session"] = session_id(session)
    if ttl_s is not None:
        options["ttl_s"] = ttl_s
    if strict:
        options["strict"] = True
    return options


def _expected(path: Path, chain: ChainLike, epoch: str) -> int:
    if chain is None:
        return 0
    if not isinstance(chain, results.Chain):
        raise TypeError(f"a chain is what get and set return, not {type(chain).__name__}")
    if chain.epoch != epoch:
        hint = "the chain is from another epoch; read the entry anew"
        raise errors.Conflict(str(path), chain.rev, None, hint=hint)
    return chain.rev


def _guard(guard: Sequence[Any]) -> list[Any]:
    path, rev = guard
    check_path(path)
    return [path, rev]


def session_id(session: SessionLike) -> str:
    """The id of a session, given as one or by its id. Raises SessionExpired if it has ended."""
    if isinstance(session, str):
        return session
    if session.ended:
        raise errors.SessionExpired(session.id)
    return session.id


def packed(value: Any) -> bytes:
    """The value as it travels. Raises BadValue, also for NotGiven."""
    if value is NotGiven:
        raise errors.BadValue("NotGiven is no value; delete the entry instead")
    return codec.pack(value)
