"""Has a procedure called for each new error, so that somebody is told.

One task of `serving.Service`, where it serves jobs for any node. The value of the place of errors
names the procedure, and the group whose runners see to it: `{"notify": PATH, "group": GROUP}`. For
each error that opens, one of them makes a job for any node, below `notify`: so it runs once, under
a claim, wherever there is room, is tried again like any job, and can be looked at. The errors of
these jobs themselves are told to nobody. When an error is over, its job goes.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

import moat_kv
from moat_kv import config, errors
from moat_kv.client import claiming, error_record
from moat_kv.notgiven import NotGiven
from moat_kv.path import P, Path
from moat_kv_runner import job

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot
    from moat_kv_runner.serving import Service

logger = logging.getLogger(__name__)

#: Below the jobs for any node of the group.
BELOW = Path("notify")
#: So many are told of at a time; others wait, so that a storm of errors is not one of jobs, too.
AT_ONCE = 5
#: Of a job that tells: between tries, in seconds, and how many there are.
DELAY_S = 10.0
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Who is told of errors, and by whom."""

    notify: Path
    """The procedure, below the place of procedures."""
    group: Path
    """The group whose runners call it."""

    def as_value(self) -> dict[str, Any]:
        return {"notify": self.notify, "group": self.group}


def parse(value: Any, default_group: Path) -> Setting | None:
    """The setting in the value of the place of errors; None if there is none. Raises BadValue."""
    if value is NotGiven or value is None:
        return None
    if not isinstance(value, Mapping):
        raise errors.BadValue("a mapping with `notify` and perhaps `group` is needed")
    notify, group = value.get("notify"), value.get("group")
    if notify is None:
        return None
    try:
        group = P(group) if isinstance(group, str) else group or default_group
    except errors.BadPath as exc:
        raise errors.BadValue(f"group: {exc}") from exc
    if not isinstance(notify, Path) or not notify:
        raise errors.BadValue(f"notify: the path of a procedure is needed, not {notify!r}")
    if not isinstance(group, Path):
        raise errors.BadValue(f"group: a path is needed, not {group!r}")
    return Setting(notify=notify, group=group)


async def serve(service: Service, root: JobRoot) -> None:
    """Follow the setting, and do what it says, until cancelled. `root`: of jobs for any node."""
    base = service.places.error
    is_told = False
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        async with service.client.watch(base, fetch=True, max_depth=0) as changes:
            async for event in changes:
                if isinstance(event, moat_kv.Reset):
                    is_told = False
                elif isinstance(event, moat_kv.Ready) and not is_told:
                    scope.cancel()  # it is gone
                elif isinstance(event, moat_kv.WatchEvent):
                    is_told = True
                    scope.cancel()
                    setting = _setting(event.get("value", NotGiven), service)
                    if setting is not None and setting.group == service.group:
                        scope = anyio.CancelScope()
                        notices = Notices(service, root, setting, since=event.rev)
                        tasks.start_soon(_serve_in, scope, notices)


async def _serve_in(scope: anyio.CancelScope, notices: Notices) -> None:
    with scope:
        await notices.serve()


def _setting(value: Any, service: Service) -> Setting | None:
    try:
        return parse(value, P(config.RunnerConfig.group))
    except errors.BadValue as exc:
        place = service.places.error
        logger.warning("nobody is told of errors; the value of %s: %s", place, exc.reason)
        return None


class Notices:
    """See above; `since` is the revision of the setting, errors before it are not told."""

    def __init__(self, service: Service, root: JobRoot, setting: Setting, *, since: int) -> None:
        self._service = service
        self._client = service.client
        self._root = root
        self._setting = setting
        self._since = since
        # Open errors by the places of their records, and those among them that are to be told.
        self._open: dict[Path, error_record.ErrorRecord] = {}
        self._due: dict[Path, error_record.ErrorRecord] = {}
        self._knows_all = False
        self._news = anyio.Event()

    async def serve(self) -> None:
        """Until cancelled."""
        self._root.states.listeners.append(self._job_changed)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch)
                while True:
                    news = self._news
                    try:
                        await self._tell()
                        await self._clean()
                    except errors.MoatKvError:
                        # One error's trouble must not end the runner.
                        logger.exception(
                            "cannot have the procedure %s called", self._setting.notify
                        )
                    await news.wait()
        finally:
            self._root.states.listeners.remove(self._job_changed)

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _job_changed(self, path: Path) -> None:
        if path.startswith(BELOW):
            self._wake()

    async def _watch(self) -> None:
        base = self._service.places.error
        async with self._client.watch(base, fetch=True, min_depth=1) as changes:
            async for event in changes:
                if isinstance(event, moat_kv.WatchEvent):
                    self._take(event)
                elif isinstance(event, moat_kv.Ready):
                    self._knows_all = True
                elif isinstance(event, moat_kv.Reset):
                    self._knows_all = False
                    self._open.clear()
                self._wake()

    def _take(self, event: moat_kv.WatchEvent) -> None:
        self._open.pop(event.path, None)
        self._due.pop(event.path, None)
        try:
            record = error_record.of_value(event.get("value"))
        except errors.BadValue:
            return  # deleted, or somebody's own entry
        if record.resolved is not None or self._is_own(record):
            return
        self._open[event.path] = record
        if event.rev > self._since:
            self._due[event.path] = record

    def _is_own(self, record: error_record.ErrorRecord) -> bool:
        """An error of the telling itself."""
        own = (self._root.base + BELOW, self._service.places.proc + self._setting.notify)
        return any(record.path.startswith(each) for each in own)

    async def _tell(self) -> None:
        """Make jobs for those that are due, so many at a time."""
        while self._due and len(self._unfinished()) < AT_ONCE:
            place, record = next(iter(self._due.items()))
            await claiming.patiently(self._client, functools.partial(self._make, place, record))
            if self._due.get(place) is record:
                del self._due[place]

    async def _make(self, place: Path, record: error_record.ErrorRecord) -> None:
        path = self._root.base + BELOW / record.subsystem / _digest(place)
        old = await self._client.get(path)
        if _first_of(old.get("value")) == record.first:
            return  # it was told already, by whoever was faster
        value = {
            "code": self._setting.notify,
            "data": {"error": _facts(record)},
            "target": time.time(),
            "delay": DELAY_S,
            "max_failures": TRIES,
            "info": f"tells of the {record.subsystem} error of {record.path}"[:200],
        }
        try:
            result = await self._client.set(path, value, expect=old.rev if "value" in old else 0)
            # The number of those that are unfinished counts it from now on.
            await self._root.wait_rev(result.rev)
        except errors.Conflict:
            return

    def _jobs(self) -> list[job.JobEntry]:
        below = self._root.follow(BELOW, create=True)
        found = [each for each in below.all_children if isinstance(each, job.JobEntry)]
        return [each for each in found if each.exists]

    def _unfinished(self) -> list[job.JobEntry]:
        return [each for each in self._jobs() if not _has_ended(each)]

    async def _clean(self) -> None:
        """Delete the jobs of errors that are over, and were told."""
        if not self._knows_all:
            return
        told = {_digest(place): record.first for place, record in self._open.items()}
        for each in self._jobs():
            first = _first_of(each.value)
            if first is None or told.get(str(each.name)) == first or not _has_ended(each):
                continue
            path, rev = each.absolute, each.rev
            try:
                await self._client.delete(path, expect=rev)
            except (errors.Conflict, *claiming.PASSING):
                continue  # somebody was faster, or it is seen to at the next change


def _digest(place: Path) -> str:
    return hashlib.blake2b(place.packed, digest_size=8).hexdigest()


def _first_of(value: Any) -> Any:
    """When the error that a job tells of was first seen; None if it is no such job."""
    data = value.get("data") if isinstance(value, Mapping) else None
    facts = data.get("error") if isinstance(data, Mapping) else None
    return facts.get("first") if isinstance(facts, Mapping) else None


def _has_ended(entry: job.JobEntry) -> bool:
    """Whether it was run for the target that it has now."""
    target = entry.value.get("target") if isinstance(entry.value, Mapping) else None
    state = entry.state.state
    if not isinstance(target, int | float) or state.started is None:
        return False
    return state.started >= target and not state.running


def _facts(record: error_record.ErrorRecord) -> dict[str, Any]:
    """What the procedure is given as `error`."""
    latest = max(record.nodes, key=lambda name: record.nodes[name].at, default=None)
    return {
        "subsystem": record.subsystem,
        "path": record.path,
        "message": record.message,
        "count": record.count,
        "first": record.first,
        "last": record.last,
        "nodes": list(record.nodes),
        "trace": record.nodes[latest].trace if latest is not None else None,
    }
