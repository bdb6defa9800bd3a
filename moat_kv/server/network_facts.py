"""What the servers of a network know of each other, told with fleeting messages.

Run by `server.server`. Every few seconds a server tells the others what `moat kv net list` shows of
it; what comes is kept here in memory, and shown as silent when nothing has come for a while. It
also notices that this server lags: that its tree has not reached, after some seconds, the
revision that another one has told. Nothing here decides anything: a server that is silent may be
well, and out of reach from here.
"""

from __future__ import annotations

import logging
import os
import pathlib
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from moat_kv import codec, errors
from moat_kv.entry import SYSTEM
from moat_kv.path import Path
from moat_kv.server.actions import Action
from moat_kv.version import VERSION

if TYPE_CHECKING:
    from moat_kv.proto.messages import Request
    from moat_kv.server.connection import Connection
    from moat_kv.server.server import Server

logger = logging.getLogger(__name__)

TOPIC = Path(SYSTEM, "servers")
#: Whoever is asked here tells its facts at once.
ASK_TOPIC = Path(SYSTEM, "servers", "ask")
#: A server tells its facts so often, in seconds; and when it is asked, so often at most.
PERIOD_S = 2.0
ASKED_S = 0.2
#: Who has not been heard for so long is shown as silent...
SILENT_S = 7.0
#: ...and after so long not at all.
FORGET_S = 3_600.0
#: A revision that another server had so long ago should be here, in seconds.
LAG_S = 5.0
#: So many revisions that were told are awaited one by one.
AWAITED = 1_000
#: So many servers are known at most; messages can come from anybody who can reach NATS.
LIMIT = 10_000


class _Heard:
    __slots__ = ("at", "facts")

    def __init__(self, facts: dict[str, Any], at: float) -> None:
        self.facts = facts
        self.at = at  # by the clock of `Servers`


class Servers:
    """The servers that were heard of, this one among them. `clock`: seconds that never go back."""

    def __init__(self, server: Server, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._clock = clock
        self._heard: dict[tuple[str, str], _Heard] = {}
        # Revisions that were told and are not here yet, rising, each with when it was told first.
        self._awaited: deque[tuple[int, float]] = deque()
        self._epoch = ""
        self._lags = False
        self._told_at = float("-inf")
        server.store.on_system_message |= {TOPIC: self.hear, ASK_TOPIC: self._asked}

    async def run(self) -> None:
        """Tell the others, until cancelled. An engine of one server has nobody to be told."""
        if "attached" not in self._server.engine.describe():
            return
        self._server.engine.send(ASK_TOPIC, b"")
        while True:
            self._tell()
            self._look_for_lag()
            await anyio.sleep(PERIOD_S)

    def _asked(self, data: bytes) -> None:
        if self._clock() - self._told_at >= ASKED_S:
            self._tell()

    def _tell(self) -> None:
        self._told_at = self._clock()
        self._server.engine.send(TOPIC, codec.pack(self.own()))

    def own(self) -> dict[str, Any]:
        """The facts of this server, see `rows`."""
        server = self._server
        engine = server.engine.describe()
        attached = engine.get("attached")
        return {
            "node": server.node,
            "incarnation": server.incarnation,
            "version": VERSION,
            "role": "embedded" if attached is None else "member",
            "attached": attached is not False,
            "since": engine.get("since") or server.started_at,
            "started": server.started_at,
            "epoch": server.engine.epoch,
            "revision": server.store.tree.revision,
            "outbox": engine.get("outbox", 0),
            "connections": len(server.connections),
            "sessions": len(server.sessions),
            "memory_bytes": memory_bytes(),
            "pid": os.getpid(),
            "place": str(engine.get("place", engine.get("kind", ""))),
            "trouble": server.engine.trouble,
        }

    def hear(self, data: bytes) -> None:
        """What a server has told, this one's own message too."""
        try:
            facts = codec.unpack(data)
            key = (facts["node"], facts["incarnation"])
            revision, epoch = facts["revision"], facts["epoch"]
            if not all(type(each) is str for each in (*key, epoch)) or type(revision) is not int:
                raise TypeError("a fact is of a wrong type")
        except (errors.BadValue, KeyError, TypeError) as exc:
            logger.debug("a server told nothing that is known: %s", exc)
            return
        now = self._clock()
        if key not in self._heard and len(self._heard) >= LIMIT:
            return
        self._heard[key] = _Heard(facts, now)
        self._forget(now, key)
        if epoch == self._server.engine.epoch:
            self._await(revision, now)

    def _forget(self, now: float, key: tuple[str, str]) -> None:
        """Drop who is long silent, and earlier runs of a server that was heard just now."""
        for other, heard in list(self._heard.items()):
            silent_s = now - heard.at
            if silent_s > FORGET_S or (other[0] == key[0] and other != key and silent_s > SILENT_S):
                del self._heard[other]

    # Lagging ------------------------------------------------------------------------------------

    def _await(self, revision: int, now: float) -> None:
        awaited = self._awaited
        if self._epoch != self._server.engine.epoch:
            self._epoch = self._server.engine.epoch
            awaited.clear()
        if revision <= (awaited[-1][0] if awaited else self._server.store.tree.revision):
            return
        if len(awaited) >= AWAITED:
            awaited.pop()
        awaited.append((revision, now))

    def _look_for_lag(self) -> None:
        """Say once that this server lags behind what others have told, and once that it does not.

        While it is cut off that is no news: its engine has said so.
        """
        awaited, revision = self._awaited, self._server.store.tree.revision
        while awaited and awaited[0][0] <= revision:
            awaited.popleft()
        lag_s = self._clock() - awaited[0][1] if awaited else 0.0
        if self._server.engine.describe().get("attached") is False:
            return
        if lag_s > LAG_S and not self._lags:
            self._lags = True
            newest = awaited[-1][0]
            logger.warning("lagging: at revision %d, others are at %d", revision, newest)
        elif lag_s <= LAG_S and self._lags:
            self._lags = False
            logger.warning("not lagging any more: at revision %d", revision)

    # Showing ------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """All servers by name: their facts, and `state`, `lag`, `heard_s`, `own`.

        `state`: `attached`, `cut off` (by its own word), or `silent`: not heard of for a while.
        `lag`: by how many revisions it is behind the newest of which anybody here has heard, None
        if it has another epoch. `heard_s`: how long ago its facts came, in seconds.
        """
        now = self._clock()
        own = self.own()
        everybody = {key: (each.facts, now - each.at) for key, each in self._heard.items()}
        everybody[own["node"], own["incarnation"]] = (own, 0.0)
        newest = max(
            facts["revision"] for facts, _ in everybody.values() if facts["epoch"] == own["epoch"]
        )
        rows = []
        for key, (facts, heard_s) in sorted(everybody.items()):
            is_ours = facts["epoch"] == own["epoch"]
            rows.append(
                {
                    **facts,
                    "state": _state(facts, heard_s),
                    "lag": newest - facts["revision"] if is_ours else None,
                    "heard_s": round(heard_s, 1),
                    "own": key == (own["node"], own["incarnation"]),
                }
            )
        return rows


def _state(facts: Mapping[str, Any], heard_s: float) -> str:
    if heard_s > SILENT_S:
        return "silent"
    return "attached" if facts.get("attached", True) else "cut off"


def memory_bytes() -> int:
    """What this process has in memory now; its peak, where the system does not say."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def servers(connection: Connection, request: Request) -> None:
    """Every server that was heard of."""
    connection.reply(request.seq, {}, codec.pack(connection.server.servers.rows()))


ACTIONS = (Action("servers", "read", {}, {}, servers),)
