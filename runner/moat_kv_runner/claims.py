"""Who runs a job: a claim is an entry that only one runner can have written.

`supervision` takes one before it does anything for a job, keeps it over runs while the job goes on,
and releases it when it ends. A claim is bound to its runner's session: it goes when the session
does, and then another runner may take it; one that is nobody's is taken over. Its revision is the
fence: every write of the job is accepted only while the claim has that revision, so whatever a
former holder still sends is refused by the engine. It is written once and never renewed. The parts
that are the same for every claim are `moat_kv.client.claiming`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from moat_kv import config
from moat_kv.client import claiming
from moat_kv.client.client import Client
from moat_kv.client.mirror import ClientEntry, ClientRoot
from moat_kv.client.session import Session
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path

#: What is added to a session's time to live before a claim that seems nobody's is taken over.
STRAY_MARGIN_S = 1.0


async def take(
    client: Client, path: Path, *, node: str, session: Session, over: int = 0
) -> claiming.Claim | None:
    """Claim a job for this runner, or None if somebody else has it.

    `over`: the revision of a claim that nobody holds (`is_stray`), to be replaced; whoever does
    hold it is refused from then on. Raises SessionExpired. Trouble that passes is waited for.
    """
    facts = {"node": node, "ttl_s": session.ttl_s}
    return await claiming.take(client, path, facts, session=session, over=over)


class ClaimEntry(ClientEntry):
    """The claim of one job, as the mirror shows it."""

    @property
    def is_free(self) -> bool:
        """There is no claim."""
        return self.value is NotGiven

    @property
    def holder(self) -> str | None:
        """The runner that has the job; None if nobody has."""
        return holder_of(self.value)

    @property
    def session(self) -> str | None:
        """The session that it is bound to; None if there is no claim that a runner has made."""
        return self.value["session"] if is_made(self.value) else None

    def updated(self) -> None:
        cast(ClaimRoot, self.root).tell(self.path)


def holder_of(value: Any) -> str | None:
    """The runner's name in a claim's value; None if it is none."""
    node = value.get("node") if isinstance(value, Mapping) else None
    return node if isinstance(node, str) else None


def is_made(value: Any) -> bool:
    """Whether a runner has written this claim, as far as can be seen."""
    return holder_of(value) is not None and isinstance(value.get("session"), str)


def is_stray(value: Any, *, own_name: str, live: Collection[str]) -> bool:
    """Whether a claim seems to be nobody's: by hand, or of a runner that is not there.

    `own_name` is this runner's, which does not hold the job; `live` are those that may. A claim
    goes with its session, and so does a member; after a restart of the server the members come back
    one by one, so this counts only if it stays so for `stray_s`.
    """
    if not is_made(value):
        return True
    return value["node"] == own_name or value["node"] not in live


def stray_s(value: Any, session: Session) -> float:
    """For how long a claim has to be stray before it is taken over, in seconds.

    By then the session of any holder has ended, or its runner is back in the group.
    """
    theirs = value.get("ttl_s") if is_made(value) else None
    if not isinstance(theirs, int | float) or not math.isfinite(theirs):
        theirs = 0.0
    return max(session.ttl_s, theirs) + STRAY_MARGIN_S


class ClaimRoot(ClientRoot):
    """The claims of one `JobRoot`'s jobs."""

    child_type = ClaimEntry

    def __init__(self, client: Client, path: Path) -> None:
        super().__init__(client, path)
        self.listeners: list[Callable[[Path], None]] = []

    @classmethod
    def place(cls, places: config.Places) -> Path:
        return places.claim

    def tell(self, path: Path) -> None:
        for listener in list(self.listeners):
            listener(path)
