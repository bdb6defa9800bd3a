"""Claims: an entry that only one can have written, whose revision is a fence.

Runners claim jobs with these, and locks are claims that stand in a line (`coord`). A claim is bound
to its claimer's session: it goes when the session does. It is written once and never renewed; its
revision is the fence: a write with `fence=claim.guard` is accepted only while the claim has that
revision, so whatever a former holder still sends is refused by the engine.

Trouble that passes by itself is waited out here (`patiently`), by whoever may safely ask again.
Nothing here decides who may claim.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import anyio

from moat_kv import errors
from moat_kv.client.client import Client
from moat_kv.client.session import Session
from moat_kv.path import Path

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Between two tries of something that the server could not do just now, in seconds.
RETRY_S = (0.05, 2.0)

#: What a change of the line, or of its server, mends: no line, an answer that was lost.
BREAKS = (errors.Disconnected, errors.Unknown, errors.RequestTimeout)

#: What passes by itself: those, a full disk, a server cut off.
PASSING = (*BREAKS, errors.Detached, errors.StorageFailed)


class Claim(NamedTuple):
    """A claim that was taken. Its fields are what `Client.bound(fence=)` takes."""

    path: Path
    fence: int
    """The claim's revision; rises with each new claim."""

    @property
    def guard(self) -> tuple[Path, int]:
        return (self.path, self.fence)


async def take(
    client: Client,
    path: Path,
    facts: Mapping[str, Any],
    *,
    session: Session,
    over: int = 0,
    passing: tuple[type[Exception], ...] = PASSING,
) -> Claim | None:
    """Claim an entry, or None if somebody else has it.

    `facts`: what others shall read there, about the claimer. `over`: the revision of a claim that
    nobody holds, to be replaced; whoever does hold it is refused from then on. `passing`: the
    trouble that is waited for. Raises SessionExpired.
    """
    token = secrets.token_hex(8)
    value = {**facts, "session": session.id, "token": token}

    async def ask() -> Claim | None:
        try:
            result = await client.set(path, value, expect=over, session=session)
        except errors.Conflict:
            found = await client.get(path)
            # An earlier try may have happened though its answer was lost.
            mine = isinstance(found.get("value"), Mapping) and found.value.get("token") == token
            return Claim(path, found.rev) if mine else None
        return Claim(path, result.rev)

    return await patiently(client, ask, passing)


async def release(
    client: Client, claim: Claim, passing: tuple[type[Exception], ...] = PASSING
) -> None:
    """Let others have it. A claim that is gone already is no error; another's is never touched."""

    async def ask() -> None:
        try:
            await client.delete(claim.path, expect=claim.fence)
        except errors.Conflict as exc:
            logger.debug("the claim is gone already: %s", exc)

    await patiently(client, ask, passing)


async def patiently(
    client: Client,
    ask: Callable[[], Awaitable[_T]],
    passing: tuple[type[Exception], ...] = PASSING,
) -> _T:
    """Ask until there is an answer; for what may safely be asked again.

    Where the client is closed meanwhile nothing passes any more: then what came last is raised.
    """
    wait_s, longest_s = RETRY_S
    while True:
        try:
            return await ask()
        except passing as exc:
            if client.closed:
                raise
            logger.info("trying again: %s", exc)
        with anyio.move_on_after(wait_s):
            await line_change(client)
        wait_s = min(wait_s * 2, longest_s)


async def line_change(client: Client) -> None:
    """Until the client's line breaks or comes back."""
    changed = anyio.Event()
    remove = client.add_connection_listener(lambda _up: changed.set())
    try:
        await changed.wait()
    finally:
        remove()
