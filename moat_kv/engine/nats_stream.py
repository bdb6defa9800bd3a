"""A network's stream: made where there is none, and checked for what we rely on where there is.

Called by `engine.nats` when it starts and at each new connection. The epoch is in the stream's
metadata, so that it is made with it, once, whoever is first. Never changes a stream's settings but
for the epoch.
"""

from __future__ import annotations

import base64
import json
import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

import anyio
import msgpack

from moat_kv import errors
from moat_kv.engine import nats_connection, nats_record, nats_settings, nats_subjects
from moat_kv.entry import Record

_log = logging.getLogger(__name__)

EPOCH_KEY = "moat-kv.epoch"
HISTORY_DEFAULT = 10

#: JetStream's numbers for what we tell apart.
STREAM_NOT_FOUND = 10059
NOT_CLUSTERED = 10074
STREAM_IS_THERE = 10058
NO_MESSAGE = 10037
#: What `nats_connection.OLDEST` says of JetStream's interface, for nodes that are not connected to.
OLDEST_LEVEL = 4
#: Making a stream takes a cluster a while, in seconds.
CREATE_S = 10.0
NO_PEERS = 10005
#: As in HTTP: JetStream has no leader yet.
UNAVAILABLE = 503
#: A message that only shows whether something is stored is sent again so often, until one is, and
#: given up after so long, in seconds.
PROBE_AGAIN_S = 1.0
PROBE_S = 10.0
#: How long nodes that can hold a new stream are waited for, and how often they are asked for, in
#: seconds.
PLACE_S = 20.0
PLACE_PAUSE_S = 0.5

#: What every network's stream has. Some are NATS's defaults, and all the same what we rely on: a
#: limit would drop records that nobody deleted, a time to live brings older ones back to life.
_FIXED: dict[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "discard": "old",
    "max_msgs": -1,
    "max_bytes": -1,
    "max_age": 0,
    "max_msg_size": -1,
    "max_consumers": -1,
    "duplicate_window": 120_000_000_000,
    "no_ack": False,
    "sealed": False,
    "deny_purge": False,
    "allow_atomic": True,
    "allow_direct": True,
    "allow_rollup_hdrs": False,
    "allow_msg_ttl": False,
    "allow_msg_counter": False,
    "allow_msg_schedules": False,
    "mirror": None,
    "sources": None,
    "subject_transform": None,
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a stream says of itself."""

    epoch: str
    #: The last sequence that was given out.
    revision: int
    messages: int
    size_bytes: int
    history: int
    replicas: int


async def prepare(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    settings: nats_settings.Settings,
) -> Facts:
    """The network's stream, made if need be. Raises EngineUnfit, nats_connection.NoAnswer."""
    wanted = _wanted(connection, names, settings)
    if connection.domain is not None:
        await _check_domain(connection, settings)
    give_up_at = time.monotonic() + PLACE_S
    while True:
        try:
            return await _find_or_make(connection, names, settings, wanted)
        except nats_connection.Refused as refused:
            # A cluster that has just come up: its nodes do not all know each other yet.
            is_passing = refused.number == NO_PEERS or refused.code == UNAVAILABLE
            if not is_passing or time.monotonic() > give_up_at:
                reason = f"JetStream says: {refused}"
                if refused.number == NO_PEERS:
                    reason += f" (of {wanted['num_replicas']} replicas, on as many nodes)"
                raise errors.EngineUnfit(settings.place, reason) from refused
            _log.debug("NATS: no stream yet: %s", refused)
        await anyio.sleep(PLACE_PAUSE_S)


async def _find_or_make(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    settings: nats_settings.Settings,
    wanted: dict[str, Any],
) -> Facts:
    """Raises EngineUnfit, nats_connection.NoAnswer, nats_connection.Refused."""
    try:
        return await look(connection, names, settings)
    except nats_connection.Refused as refused:
        if refused.number != STREAM_NOT_FOUND:
            raise
    _log.info("NATS: making the network %s", names.network)
    metadata = {EPOCH_KEY: secrets.token_hex(8), "moat-kv.format": "1"}
    try:
        made = await _create(connection, names, settings, wanted | {"metadata": metadata})
    except nats_connection.Refused as refused:
        if refused.number != STREAM_IS_THERE:
            raise
        return await look(connection, names, settings)  # somebody else was quicker
    return _checked(made, names, settings)


async def _check_domain(
    connection: nats_connection.Connection, settings: nats_settings.Settings
) -> None:
    """Whether the nodes of a domain can hold a network.

    Raises EngineUnfit, nats_connection.NoAnswer.
    """
    try:
        found = await connection.api("INFO")
    except nats_connection.Refused as refused:
        raise errors.EngineUnfit(settings.place, f"JetStream says: {refused}") from refused
    if int((found.get("api") or {}).get("level", 0)) < OLDEST_LEVEL:
        needed = ".".join(map(str, nats_connection.OLDEST))
        raise errors.EngineUnfit(
            settings.place,
            f"the nats-server of domain {connection.domain} is older than {needed}: "
            f"{nats_connection.WHY_OLDEST}",
        )


async def _create(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    settings: nats_settings.Settings,
    wanted: dict[str, Any],
) -> dict[str, Any]:
    """Make the stream. Raises nats_connection.NoAnswer, Refused."""
    what = f"STREAM.CREATE.{names.stream}"
    try:
        return await connection.api(what, wanted, CREATE_S)
    except nats_connection.Refused as refused:
        # What this node says of its cluster says nothing of a domain's.
        if refused.number != NOT_CLUSTERED or settings.access.replicas is not None:
            raise
    return await connection.api(what, wanted | {"num_replicas": 1}, CREATE_S)


async def look(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    settings: nats_settings.Settings,
) -> Facts:
    """The stream that is there. Raises EngineUnfit, nats_connection.NoAnswer, Refused."""
    info = await connection.api(f"STREAM.INFO.{names.stream}", changes=False)
    return _checked(info, names, settings)


async def look_with_floor(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    settings: nats_settings.Settings,
) -> tuple[Facts, int]:
    """As `look`, and how far deletions are forgotten; both are asked at once."""
    facts: list[Facts] = []
    floors: list[int] = []
    failures: list[Exception] = []  # as they are, not in a group

    async def ask_floor() -> None:
        try:
            floors.append((await floor(connection, names))[0])
        except (nats_connection.NoAnswer, nats_connection.Refused) as exc:
            failures.append(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_floor)
        try:
            facts.append(await look(connection, names, settings))
        except (nats_connection.NoAnswer, nats_connection.Refused, errors.EngineUnfit) as exc:
            failures.insert(0, exc)
            tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return facts[0], floors[0]


def _wanted(
    connection: nats_connection.Connection,
    names: nats_subjects.Names,
    settings: nats_settings.Settings,
) -> dict[str, Any]:
    access = settings.access
    return {name: value for name, value in _FIXED.items() if value is not None} | {
        "name": names.stream,
        "description": f"moat-kv network {names.network}",
        "subjects": list(names.stored),
        "max_msgs_per_subject": access.history or HISTORY_DEFAULT,
        "num_replicas": access.replicas or _replicas(connection),
    }


def _replicas(connection: nats_connection.Connection) -> int:
    # A leaf node names itself as a cluster; of a domain's, `_create` finds out.
    return 3 if connection.is_clustered or connection.domain is not None else 1


def _checked(
    info: dict[str, Any], names: nats_subjects.Names, settings: nats_settings.Settings
) -> Facts:
    found, state = info["config"], info["state"]
    wanted = dict(_FIXED)
    if settings.access.history is not None:
        wanted["max_msgs_per_subject"] = settings.access.history
    if settings.access.replicas is not None:
        wanted["num_replicas"] = settings.access.replicas
    differences = [
        f"{name} is {_shown(found.get(name, False if value is True else None))}, "
        f"not {_shown(value)}"
        for name, value in wanted.items()
        # What is off, or none, may be left out.
        if (found.get(name) or None) != (value or None)
    ]
    if sorted(found["subjects"]) != sorted(names.stored):
        differences.append(f"subjects are {found['subjects']}, not {list(names.stored)}")
    epoch = (found.get("metadata") or {}).get(EPOCH_KEY)
    if epoch is None:
        differences.append(f"metadata has no {EPOCH_KEY}")
    if found["max_msgs_per_subject"] < 1:
        differences.append("max_msgs_per_subject is without limit")
    if differences:
        raise errors.EngineUnfit(
            settings.place,
            f"the stream {names.stream} was made with other settings: {'; '.join(differences)}",
        )
    return Facts(
        epoch=str(epoch),
        revision=state["last_seq"],
        messages=state["messages"],
        size_bytes=state["bytes"],
        history=found["max_msgs_per_subject"],
        replicas=found["num_replicas"],
    )


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value).lower() if type(value) is bool else str(value)


async def renew_epoch(
    connection: nats_connection.Connection, names: nats_subjects.Names, known: str
) -> None:
    """Begin a new epoch, unless another server has: revisions may have been given out twice.

    Raises nats_connection.NoAnswer, Refused.
    """
    info = await connection.api(f"STREAM.INFO.{names.stream}", changes=False)
    changed = dict(info["config"])
    metadata = dict(changed.get("metadata") or {})
    if metadata.get(EPOCH_KEY) != known:
        return
    metadata = {name: text for name, text in metadata.items() if not name.startswith("_nats")}
    changed["metadata"] = metadata | {EPOCH_KEY: secrets.token_hex(8)}
    await connection.api(f"STREAM.UPDATE.{names.stream}", changed)


async def last(
    connection: nats_connection.Connection, names: nats_subjects.Names, subject: str
) -> tuple[int, bytes] | None:
    """The revision and body of the newest message that a subject (or pattern) has; None: no such.

    Raises nats_connection.NoAnswer, Refused.
    """
    try:
        answer = await connection.api(
            f"STREAM.MSG.GET.{names.stream}", {"last_by_subj": subject}, changes=False
        )
    except nats_connection.Refused as refused:
        if refused.number == NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    return message["seq"], base64.b64decode(message.get("data", ""))


async def record_at(
    connection: nats_connection.Connection, names: nats_subjects.Names, rev: int
) -> Record | None:
    """The record of a revision; None if it is not kept any more, or was none of an entry.

    Raises nats_connection.NoAnswer, Refused.
    """
    try:
        answer = await connection.api(f"STREAM.MSG.GET.{names.stream}", {"seq": rev}, changes=False)
    except nats_connection.Refused as refused:
        if refused.number == NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    body = base64.b64decode(message.get("data", ""))
    try:
        path = names.path(message["subject"])
        if path is None:
            return None
        place = nats_record.Place(rev, 0, 0.0, 0)
        return nats_record.delivered(path, place, body).record
    except (nats_record.NotOurs, errors.BadPath):
        return None


async def end(connection: nats_connection.Connection, names: nats_subjects.Names) -> int:
    """The revision of the newest message. Raises nats_connection.NoAnswer, Refused."""
    found = await last(connection, names, names.all)
    return found[0] if found is not None else 0


async def sure_end(connection: nats_connection.Connection, names: nats_subjects.Names) -> int:
    """The revision of a message that is stored for this, by a majority: whatever a node says that
    led until lately and does not know yet that another one does, the log is no shorter.

    Raises nats_connection.NoAnswer.
    """
    answer = await connection.request(names.probe, b"", timeout_s=PROBE_S, again_s=PROBE_AGAIN_S)
    rev = json.loads(answer).get("seq")
    if rev is None:
        raise nats_connection.NoAnswer(f"a probe was not stored: {answer!r}")
    return int(rev)


async def floor(
    connection: nats_connection.Connection, names: nats_subjects.Names
) -> tuple[int, int]:
    """The floor, and the revision of the record that says so; zeros if there is none.

    Raises nats_connection.NoAnswer, Refused.
    """
    found = await last(connection, names, names.floor)
    if found is None:
        return 0, 0
    return floor_of(found[1]), found[0]


def floor_body(value: int) -> bytes:
    """The body of the record that says how far deletions are forgotten."""
    packed: bytes = msgpack.packb([1, value])
    return packed


def floor_of(body: bytes) -> int:
    """What `floor_body` was made of."""
    return int(msgpack.unpackb(body)[1])
