"""A job's entry and its state entry: what users ask for, and what became of it.

`JobSpec` and `JobState` are the values; `JobEntry` and `StateEntry` the active entries of a
`roots.JobRoot` and its states. Users set attributes of a `JobEntry` and save it; state entries are
written by `supervision` alone. Nothing here runs anything.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from moat_kv import config, errors
from moat_kv.client.mirror import ClientEntry, ClientRoot
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_runner import attributes

if TYPE_CHECKING:
    from moat_kv_runner.roots import JobRoot


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job, as its entry asks for it. Times in seconds; `target` since 1970."""

    code: Path | None = None
    """The procedure, below the place of procedures."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Values of the procedure's variables and globals."""
    target: float | None = None
    """When to start; None: not at all."""
    delay: float = 100.0
    """Before another try after a failure, times `backoff` to the power of the failures in a row."""
    backoff: float = 1.1
    max_delay: float | None = None
    """No wait after a failure is longer; None: no limit."""
    max_failures: int = 0
    """After so many failures in a row it is parked until somebody acts; 0: never."""
    repeat: float = 0.0
    """From the end of a run to the next; 0: no more."""
    cron: str | None = None
    """The times to start at, from `target` on; see `recurrence`."""
    zone: str | None = None
    """The time zone of `cron` and `between`; None: the runner's."""
    between: tuple[str, ...] = ()
    """Windows in which a run may begin; none: always."""
    jitter: float = 0.0
    """Begin up to so much later, always the same for one job and time."""
    catch_up: str = "once"
    """What becomes of times that passed while no runner was there: one run for all, or `skip`."""
    overlap: str = "skip"
    """What becomes of a time that passes during a run: `skip`, `queue` or `restart`."""
    require: tuple[str, ...] = ()
    """Tags that a node must have to run it."""
    prefer: tuple[str, ...] = ()
    """Tags for which a node goes before others."""
    ok_after: float = 0.0
    """A run that lasts this long has left its earlier failures behind; 0: only when it succeeds."""
    enabled: bool = True
    isolate: str | None = None
    on_split: str = "each"
    """What it does while the network is parted: `each`, `fenced` or `stick`, see `parting`."""
    share: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    """Of its process, by name, see `children.limits`; a name that is left out is as the group's."""
    restart: float | None = None
    """When somebody last asked for a restart; a run that began earlier is started anew."""
    info: Any = None


#: What changing restarts a run.
RESTARTING = ("code", "data", "isolate", "share", "env", "limits", "restart")
#: What a group's settings may say for all its jobs, in their mapping `defaults`.
DEFAULTS = (
    "delay",
    "backoff",
    "max_delay",
    "max_failures",
    "repeat",
    "zone",
    "between",
    "jitter",
    "catch_up",
    "overlap",
    "ok_after",
    "require",
    "prefer",
    "isolate",
    "on_split",
    "env",
    "limits",
)
#: Of these mappings a job's are laid over its group's.
_LAID_OVER = ("env", "limits")


def parse_spec(value: Any, defaults: Mapping[str, Any] | None = None) -> JobSpec:
    """The job in an entry's value; `defaults` are those of its group.

    Raises BadValue that names the attribute.
    """
    if not isinstance(value, Mapping):
        raise errors.BadValue("a job is a mapping")
    names = {item.name for item in dataclasses.fields(JobSpec)}
    given = {name: each for name, each in (defaults or {}).items() if name in DEFAULTS}
    # None means "as usual", except where it means something of its own.
    given |= {name: each for name, each in value.items() if each is not None}
    for name in _LAID_OVER:
        below, above = (defaults or {}).get(name), value.get(name)
        if isinstance(below, Mapping) and isinstance(above, Mapping):
            given[name] = {**below, **above}
    unknown = given.keys() - names
    if unknown:
        raise errors.BadValue(f"{min(map(str, unknown))}: there is no such attribute of a job")
    if value.get("cron") is not None and value.get("repeat"):
        raise errors.BadValue("cron, repeat: a job has one of the two")
    return JobSpec(**{name: attributes.checked(name, each) for name, each in given.items()})


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What became of a job. Times are seconds since 1970."""

    started: float | None = None
    """The last start, never before the target that it was for."""
    stopped: float | None = None
    """The last end; unset or before `started`: it runs, or its runner has gone."""
    pinged: float | None = None
    """When this was last written."""
    result: Any = None
    """What the last run returned; None if it failed."""
    node: str | None = None
    """The runner that has it now, or had it last."""
    backoff: int = 0
    """Failures in a row."""
    computed: float | None = None
    """When it is due next, as far as that is known."""
    reason: str | None = None
    """Why it is not running, or what it is doing."""
    fence: int | None = None
    """The number of the claim under which this was written."""
    interrupted: bool = False
    """The last run did not end by itself: the job was disabled, or lost its target."""
    parked: bytes | None = None
    """It has failed too often; what its code was then, as `readiness.digest` has it."""
    sticks_to: str | None = None
    """With `on_split: stick`: the runner that has it, and that has not let go."""
    settled: str | None = None
    """Of a run without a claim: the runner that went on when the network was whole again."""

    @property
    def running(self) -> bool:
        """It has started and not stopped; whether its runner still lives is told by its claim."""
        if self.started is None:
            return False
        return self.stopped is None or self.stopped < self.started

    def as_value(self) -> dict[str, Any]:
        """The entry's value; what says nothing is left out."""
        value = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        quiet = {"backoff": 0, "interrupted": False}
        return {
            name: each
            for name, each in value.items()
            if each is not None and each != quiet.get(name)
        }


def is_state(value: Any) -> bool:
    """Whether a value is a state that a runner has written."""
    return isinstance(value, Mapping) and isinstance(value.get("pinged"), int | float)


def parse_state(value: Any) -> JobState:
    """The state in an entry's value; what is not understood counts as not there."""
    if not isinstance(value, Mapping):
        return JobState()

    def number(name: str) -> float | None:
        each = value.get(name)
        if isinstance(each, bool) or not isinstance(each, int | float):
            return None
        return each if math.isfinite(each) else None

    def text(name: str) -> str | None:
        each = value.get(name)
        return each if isinstance(each, str) else None

    return JobState(
        started=number("started"),
        stopped=number("stopped"),
        pinged=number("pinged"),
        result=value.get("result"),
        node=text("node"),
        backoff=max(0, int(number("backoff") or 0)),
        computed=number("computed"),
        reason=text("reason"),
        fence=int(number("fence") or 0) or None,
        interrupted=value.get("interrupted") is True,
        parked=parked if isinstance(parked := value.get("parked"), bytes) else None,
        sticks_to=text("sticks_to"),
        settled=text("settled"),
    )


_T = TypeVar("_T")


class _Attribute(Generic[_T]):
    """An attribute of a job that users read and set; what is set is kept until `save`."""

    _name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, entry: None, owner: type) -> _Attribute[_T]: ...
    @overload
    def __get__(self, entry: JobEntry, owner: type) -> _T: ...
    def __get__(self, entry: JobEntry | None, owner: type) -> Any:
        return self if entry is None else entry.attribute(self._name)

    def __set__(self, entry: JobEntry, value: _T) -> None:
        checked = attributes.checked(self._name, value) if value is not None else None
        entry.draft[self._name] = checked


class JobEntry(ClientEntry):
    """A job, as a user's program and the runner see it.

    Setting an attribute changes a draft; `save` (or `run_at`) writes it, over what others have
    changed meanwhile. Setting None takes an attribute away.
    """

    code = _Attribute[Path | None]()
    data = _Attribute[Mapping[str, Any]]()
    target = _Attribute[float | None]()
    delay = _Attribute[float]()
    backoff = _Attribute[float]()
    max_delay = _Attribute[float | None]()
    max_failures = _Attribute[int]()
    repeat = _Attribute[float]()
    cron = _Attribute[str | None]()
    zone = _Attribute[str | None]()
    between = _Attribute[Sequence[str]]()
    jitter = _Attribute[float]()
    catch_up = _Attribute[str]()
    overlap = _Attribute[str]()
    require = _Attribute[Sequence[str]]()
    prefer = _Attribute[Sequence[str]]()
    ok_after = _Attribute[float]()
    enabled = _Attribute[bool]()
    isolate = _Attribute[str | None]()
    on_split = _Attribute[str]()
    share = _Attribute[str | None]()
    env = _Attribute[Mapping[str, str]]()
    limits = _Attribute[Mapping[str, float]]()
    info = _Attribute[Any]()

    def __init__(self, parent: ClientEntry | None, name: Any, root: ClientRoot) -> None:
        super().__init__(parent, name, root)
        self.draft: dict[str, Any] = {}
        self._state: StateEntry | None = None

    @property
    def jobs(self) -> JobRoot:
        """The root that this job belongs to."""
        return cast("JobRoot", self.root)

    @property
    def state(self) -> StateEntry:
        """Its state entry; empty if it has never run."""
        if self._state is None:
            self._state = cast(StateEntry, self.jobs.states.follow(self.path, create=True))
        return self._state

    @property
    def exists(self) -> bool:
        return self.value is not NotGiven

    def spec(self) -> JobSpec:
        """The job as it is stored. Raises BadValue."""
        return parse_spec(self.value, self.jobs.defaults)

    def attribute(self, name: str) -> Any:
        """What the draft says, else what is stored, else the default."""
        if self.draft.get(name) is not None:
            return self.draft[name]
        stored = self.value if isinstance(self.value, Mapping) and name not in self.draft else {}
        if stored.get(name) is not None:
            return stored[name]
        return getattr(parse_spec({}, self.jobs.defaults), name)

    async def save(self) -> None:
        """Write what was set since the last time; return when it is seen here.

        Raises BadValue, and what writing may raise.
        """
        while True:
            old = await self.client.get(self.absolute)
            stored = old.get("value")
            changed = {**(stored if isinstance(stored, Mapping) else {}), **self.draft}
            changed = {name: each for name, each in changed.items() if each is not None}
            parse_spec(changed, self.jobs.defaults)
            try:
                await self.update(changed, expect=old.rev)
            except errors.Conflict:
                continue
            self.draft.clear()
            return

    async def run_at(self, when: float | None) -> None:
        """Save with this `target`: seconds since 1970, or None for "do not start"."""
        self.target = when
        await self.save()

    async def run_now(self) -> None:
        """Save, due at once."""
        await self.run_at(time.time())

    def updated(self) -> None:
        self.jobs.job_changed(self)


class StateEntry(ClientEntry):
    """A job's state, read-only for everybody but the runner that holds its claim."""

    def __init__(self, parent: ClientEntry | None, name: Any, root: ClientRoot) -> None:
        super().__init__(parent, name, root)
        self._parsed: JobState | None = None

    @property
    def state(self) -> JobState:
        if self._parsed is None:
            self._parsed = parse_state(self.value)
        return self._parsed

    def __getattr__(self, name: str) -> Any:
        """`result`, `started`, and the other attributes of `JobState`."""
        if name.startswith("_") or name not in _STATE_NAMES:
            raise AttributeError(name)
        return getattr(self.state, name)

    def updated(self) -> None:
        self._parsed = None
        cast(StateRoot, self.root).tell(self.path)


_STATE_NAMES = {item.name for item in dataclasses.fields(JobState)} | {"running"}


class StateRoot(ClientRoot):
    """The states of one `JobRoot`'s jobs."""

    child_type = StateEntry

    def __init__(self, client: Any, path: Path) -> None:
        super().__init__(client, path)
        self.listeners: list[Any] = []

    @classmethod
    def place(cls, places: config.Places) -> Path:
        return places.state

    def tell(self, path: Path) -> None:
        for listener in list(self.listeners):
            listener(path)
