"""What a cluster in a box consists of: names, ports, who reaches whom by which link, and its file.

Values only, made once by `cluster` when it comes up, and kept in a file so that later commands find
what is theirs. Links are one for each direction in which connections are made: every server has one
to each NATS node, and every NATS node one to each other. With network namespaces they are no more
than the places of those nodes, and there is no process for them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moat_kv import config
from moat_kv.engine import nats_settings
from moat_kv.testing import background, nats
from moat_kv.testing import ports as free_ports

Kind = Literal["nats", "server", "links"]

#: The process that all links are in.
LINKS = "links"
_LOOPBACK = "127.0.0.1"
#: What the servers' network is called on NATS.
NETWORK = "box"
FILE_NAME = "cluster.json"
#: NATS nodes leave each other alone after two of these without an answer, in seconds.
ROUTE_PING_S = 2
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of a cluster."""

    name: str
    kind: Kind
    port: int
    """For clients; of the links, for orders."""
    route_port: int = 0
    """NATS: for the other nodes."""
    monitor_port: int = 0
    """NATS: where it tells how it is, on loopback."""
    address: str = _LOOPBACK
    """What the others find it at; in a namespace its own."""
    socket: str = ""
    """A server in a namespace: the Unix socket for clients."""

    @property
    def url(self) -> str:
        if self.socket:
            return f"unix://{self.socket}"
        scheme = "nats" if self.kind == "nats" else "tcp"
        return f"{scheme}://{self.address}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Link:
    """How `source` reaches `target`: what comes to `port` is passed on to `target_port`."""

    source: str
    target: str
    port: int
    target_port: int
    host: str = _LOOPBACK

    @property
    def place(self) -> str:
        """`host:port`, for the source."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A cluster and what was done to it."""

    members: tuple[Member, ...]
    links: tuple[Link, ...]
    token: str
    """Who knows it may give orders to the links."""
    dead_port: int
    """Where nobody listens."""
    processes: Mapping[str, background.Process] = field(default_factory=dict)
    """By name; of those too that have ended."""
    cuts: frozenset[tuple[str, str]] = frozenset()
    """From whom to whom nothing comes through."""
    delay_s: float = 0.0
    """Each chunk on each link takes so long, each way."""
    hold_share: float = 0.0
    """So many of the chunks (0 to 1) are held for longer, see `proxy.Slowness`."""
    netns: str = ""
    """What the names of its network namespaces begin with; empty if it has none."""

    def member(self, name: str) -> Member:
        """Raises KeyError."""
        return next((each for each in self.members if each.name == name), None) or _missing(name)

    def of_kind(self, kind: Kind) -> tuple[Member, ...]:
        return tuple(each for each in self.members if each.kind == kind)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the servers and the NATS nodes."""
        return tuple(each.name for each in self.members if each.kind != "links")

    def links_from(self, name: str) -> tuple[Link, ...]:
        return tuple(each for each in self.links if each.source == name)

    def neighbours(self, name: str) -> frozenset[str]:
        """Whom it has a link with, whoever makes the connections."""
        ends = [(each.source, each.target) for each in self.links]
        return frozenset(b if a == name else a for a, b in ends if name in (a, b))

    def is_cut(self, name: str) -> bool:
        """Whether nothing comes through from it or to it, in one direction at least, to anybody."""
        wanted = self.neighbours(name)
        out = {b for a, b in self.cuts if a == name}
        back = {a for a, b in self.cuts if b == name}
        return bool(wanted) and (wanted <= out or wanted <= back)


def make(nodes: int, servers: int, first_port: int = 0) -> Plan:
    """`first_port`: the first server's, the others' follow; 0 takes free ones."""
    # Of the nodes, the servers, the links, and two more.
    count = 3 * nodes + servers + nodes * (nodes - 1 + servers) + 2
    ports = iter(free_ports.free(count))
    members = [
        Member(
            name=f"nats{number}",
            kind="nats",
            port=next(ports),
            route_port=next(ports),
            monitor_port=next(ports),
        )
        for number in range(1, nodes + 1)
    ]
    stores = tuple(members)
    for number in range(servers):
        port = first_port + number if first_port else next(ports)
        members.append(Member(name=f"s{number + 1}", kind="server", port=port))
    links = [
        Link(
            source=each.name,
            target=store.name,
            port=next(ports),
            target_port=store.route_port if each.kind == "nats" else store.port,
        )
        for each in members
        for store in stores
        if each.name != store.name
    ]
    members.append(Member(name=LINKS, kind="links", port=next(ports)))
    return Plan(
        members=tuple(members),
        links=tuple(links),
        token=secrets.token_hex(16),
        dead_port=next(ports),
    )


def make_in_namespaces(nodes: int, servers: int, prefix: str, folder: pathlib.Path) -> Plan:
    """One whose members have namespaces of their own, and so the ports that are usual."""
    names = [("nats", f"nats{number}") for number in range(1, nodes + 1)]
    names += [("server", f"s{number}") for number in range(1, servers + 1)]
    members = []
    for number, (kind, name) in enumerate(names, 1):
        address = f"10.0.0.{number}"
        if kind == "nats":
            member = Member(
                name=name,
                kind="nats",
                port=nats_settings.DEFAULT_PORT,
                route_port=6222,
                monitor_port=8222,
                address=address,
            )
        else:
            socket_ = str(folder / name / "socket")
            port = config.DEFAULT_PORT
            member = Member(name=name, kind="server", port=port, address=address, socket=socket_)
        members.append(member)
    links = []
    for each in members:
        for store in members[:nodes]:
            if each.name != store.name:
                port = store.route_port if each.kind == "nats" else store.port
                link = Link(
                    source=each.name,
                    target=store.name,
                    port=port,
                    target_port=port,
                    host=store.address,
                )
                links.append(link)
    return Plan(members=tuple(members), links=tuple(links), token="", dead_port=0, netns=prefix)


def lay_out(plan: Plan, folder: pathlib.Path) -> None:
    """Make the files of a new cluster."""
    for member in plan.members:
        place = folder / member.name
        place.mkdir()
        if member.kind == "nats":
            (place / "nats.conf").write_text(nats_config(plan, member, place))
    save(plan, folder)


def nats_config(plan: Plan, member: Member, folder: pathlib.Path) -> str:
    """The text of a NATS node's configuration file."""
    store = json.dumps(str(folder / "jetstream"))
    lines = [
        f"server_name: {member.name}",
        f"listen: {member.address}:{member.port}",
        f"http: {_LOOPBACK}:{member.monitor_port}",
        f"max_payload: {nats.MAX_PAYLOAD}",
        # By default NATS syncs every two minutes, and a power cut takes what came since.
        f"jetstream {{ store_dir: {store}, sync_interval: always }}",
    ]
    routes = [f"nats://{each.place}" for each in plan.links_from(member.name)]
    if routes:
        # By default a node holds one that is silent for present for minutes, and gives it work to
        # do that nobody then does.
        #
        # What a node tells of itself to nodes that know it already leads nowhere: else they would
        # find ways to it around the links. (There are none around a bridge.)
        advertise = "" if plan.netns else f"advertise: {_LOOPBACK}:{plan.dead_port}, "
        lines.append(
            f"cluster {{ name: {NETWORK}, listen: {member.address}:{member.route_port}, "
            f"{advertise}no_advertise: true, "
            f'ping_interval: "{ROUTE_PING_S}s", ping_max: 2, '
            f"routes: [{', '.join(routes)}] }}"
        )
    return "\n".join(lines) + "\n"


def engine_url(plan: Plan, member: Member) -> str:
    """What a server's `--engine` is: its own links to all NATS nodes."""
    places = ",".join(each.place for each in plan.links_from(member.name))
    return f"nats://{places}/{NETWORK}"


def save(plan: Plan, folder: pathlib.Path) -> None:
    """Into the folder's file; it is there whole, or as before."""
    value = dataclasses.asdict(plan) | {"version": _VERSION, "cuts": sorted(plan.cuts)}
    new = folder / f"{FILE_NAME}.new"
    with open(new, "w", opener=_private) as file:  # it needs an opener
        json.dump(value, file, indent=1)
    new.replace(folder / FILE_NAME)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def load(folder: pathlib.Path) -> Plan | None:
    """What is in the folder's file; None if there is none. Raises ValueError for another one."""
    try:
        text = (folder / FILE_NAME).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        value: dict[str, Any] = json.loads(text)
        if value.pop("version") != _VERSION:
            raise ValueError("another version made it")
        value["members"] = tuple(Member(**each) for each in value["members"])
        value["links"] = tuple(Link(**each) for each in value["links"])
        value["cuts"] = frozenset((a, b) for a, b in value["cuts"])
        processes: Mapping[str, Any] = value["processes"]
        value["processes"] = {name: background.Process(**each) for name, each in processes.items()}
        return Plan(**value)
    except (ValueError, KeyError, TypeError) as exc:
        raise ValueError(f"{folder / FILE_NAME} is not readable: {exc}") from exc


def cut_between(one: Sequence[str], other: Sequence[str]) -> frozenset[tuple[str, str]]:
    """The cuts for which nothing passes between two sides."""
    return frozenset((a, b) for a in one for b in other) | frozenset(
        (b, a) for a in one for b in other
    )


def _missing(name: str) -> Member:
    raise KeyError(name)
