"""What the tree says: a copy of all of it, kept by a watch, for the screen and for the plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

import moat_kv
from moat_kv import P, config
from moat_kv.path import Path
from moat_kv_cli import progress
from moat_kv_runner import job as spec

if TYPE_CHECKING:
    from moat_kv import Client

TEMPERATURES = P("home.onewire.temp")
SWITCHES = P("home.onewire.switch")
GROUP = P("demo.group")
RADIO = P("demo.radio")
READING = P("demo.reading")
LOAD = P("demo.load")
GROUP_NAME = Path("default")

#: What `radio` and the others are called as jobs.
RADIO_JOB = P("demo.radio")
READ_JOB = P("demo.read_one")
LOAD_JOB = P("demo.load")


@dataclass(frozen=True, kw_only=True)
class JobSeen:
    """One job on one node."""

    path: Path
    kind: str
    node: str
    word: str
    result: Any


class Seen:
    """The entries by their paths, and who is in the group."""

    def __init__(self, client: Client, places: config.Places) -> None:
        self.client = client
        self.places = places
        self.entries: dict[Path, Any] = {}
        self.members: tuple[str, ...] = ()
        self._changed = anyio.Event()

    async def follow(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Keep the copy until cancelled."""
        async with self.client.watch(Path(), fetch=True) as changes:
            async for event in changes:
                if isinstance(event, moat_kv.Ready):
                    task_status.started()
                elif isinstance(event, moat_kv.WatchEvent):
                    if "value" in event:
                        self.entries[event.path] = event.value
                    else:
                        self.entries.pop(event.path, None)
                    self._tell()

    async def follow_group(self) -> None:
        """Keep the members until cancelled."""
        async with self.client.watch_group(self.places.group + GROUP_NAME) as changes:
            async for members in changes:
                self.members = tuple(sorted(members or ()))
                self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition: Callable[[], bool], until: float) -> bool:
        """Wait until something is seen, or that time of the event loop's clock; whether it was."""
        with anyio.move_on_at(until):
            while not condition():
                await self._changed.wait()
        return condition()

    # What the screen and the findings ask for ---------------------------------------------------

    def value(self, path: Path) -> Any:
        """An entry's value; an empty mapping if there is none."""
        return self.entries.get(path, {})

    def below(self, base: Path) -> dict[Path, Any]:
        """The entries below a path, by the rest of their paths, in order."""
        found = {
            path[len(base) :]: each for path, each in self.entries.items() if path.startswith(base)
        }
        return {path: found[path] for path in sorted(found) if path}

    @property
    def sensors(self) -> dict[str, str]:
        """What the bus says: names and values as text."""
        shown = {}
        for path, value in self.below(TEMPERATURES).items():
            if isinstance(value, Mapping) and "value" in value:
                shown[".".join(map(str, path))] = f"{value['value']:.2f} °C"
        switches: dict[str, list[str]] = {}
        for path, value in self.below(SWITCHES).items():
            on = switches.setdefault(".".join(map(str, path[:-1])), [])
            if value:
                on.append(str(path[-1]))
        return shown | {
            name: f"{', '.join(on)} on" if on else "off" for name, on in switches.items()
        }

    @property
    def group_state(self) -> str:
        """What the scripts were told of their group; empty if they were not yet."""
        return str(self.value(GROUP).get("state", ""))

    @property
    def radio(self) -> str:
        """What the any-node job says of itself."""
        value = self.value(RADIO)
        return f"{value['node']}, poll {value['count']}" if "count" in value else "-"

    def jobs(self) -> list[JobSeen]:
        """Every job, on every node that has to do with it."""
        rows = []
        for kind in ("at", "any", "all"):
            states = self.below(self.places.state / kind)
            claims = self.below(self.places.claim / kind)
            for path, job in self.below(self.places.run / kind).items():
                if isinstance(job, Mapping) and "code" in job:
                    rows += _rows(kind, path, job, states, claims)
        return rows

    def runs(self, node: str) -> dict[Path, tuple[str, int, float]]:
        """What runs on a node and lasts, by its state's path: the node, the fence, when it began.

        Without what ends by itself and is begun anew now and then, as it should be.
        """
        found = {}
        for path, value in self.below(self.places.state).items():
            state = spec.parse_state(value)
            if state.running and state.node == node and not self._job_of(path).get("repeat"):
                found[path] = (node, state.fence or 0, state.started or 0.0)
        return found

    def _job_of(self, place: Path) -> Mapping[str, Any]:
        """The job that a state belongs to; of a job for all nodes each one has a state."""
        head = 1 + len(GROUP_NAME)
        path = place[:head] + place[head + 1 :] if place[0] == "all" else place
        job: Mapping[str, Any] = self.value(self.places.run + path)
        return job

    def job(self, kind: str, path: Path) -> list[JobSeen]:
        return [each for each in self.jobs() if (each.kind, each.path) == (kind, path)]


def _rows(
    kind: str,
    place: Path,
    job: Mapping[str, Any],
    states: Mapping[Path, Any],
    claims: Mapping[Path, Any],
) -> list[JobSeen]:
    head = len(GROUP_NAME) + (kind == "at")
    path = place[head:]
    if kind == "all":
        # Each node has a state of its own, with its name before the job's path.
        nodes = sorted({str(each[head]) for each in states if len(each) > head})
        places = {node: place[:head] / node + path for node in nodes}
    else:
        places = {str(place[0]) if kind == "at" else "": place}
    found = {node: each for node, each in places.items() if each in states}
    rows = []
    for node, each in (found or {"": place}).items():
        state = spec.parse_state(states.get(each))
        rows.append(
            JobSeen(
                path=path,
                kind=kind,
                node=state.node or node,
                word=progress.word(job, state, is_claimed=each in claims),
                result=state.result,
            )
        )
    return rows
