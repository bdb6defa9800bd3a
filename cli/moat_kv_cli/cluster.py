"""`moat kv cluster`: a network of servers on this machine, to see what happens when some fail.

All work is done by `moat_kv.testing.cluster`; here are the words around it. Where servers need time
to notice something, the command waits until they have, so that the next one finds it so.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import asyncclick as click

from moat_kv_cli import command, output

if TYPE_CHECKING:
    from moat_kv.testing.cluster import Cluster
    from moat_kv.testing.cluster_look import Seen

#: The first server's port; far from that of a server of one's own.
FIRST_PORT = 27601
#: How long servers may take to notice that they are cut off, and to be in touch again, in seconds.
NOTICE_S = 15.0
SETTLE_S = 45.0

#: So that it fits 80 columns, a table says in one what `attached` and `via` are.
_COLUMNS = ("name", "kind", "pid", "url", "state", "attached", "outbox", "rev")
_F = TypeVar("_F", bound=Callable[..., Any])

_HELP = """Servers and NATS nodes on this machine, to see fail-over.

Servers are called s1, s2, ..., NATS nodes nats1, nats2, ... What they say to each other can be cut;
clients always reach the servers.
"""


@click.group(
    cls=command.Group,
    help=_HELP,
    short_help="A network of servers on this machine, to see fail-over.",
    example="moat kv cluster up\nmoat kv cluster cut s3\nmoat kv cluster status\n"
    "moat kv cluster heal\nmoat kv cluster down",
)
def cluster() -> None:
    """See _HELP."""


def _place(ctx: click.Context, param: click.Parameter, value: str | None) -> Cluster | None:
    if ctx.resilient_parsing:
        return None
    from moat_kv.testing.cluster import Cluster

    if value is not None:
        return Cluster(pathlib.Path(value).expanduser().absolute())
    from moat_kv import config

    # A dot is in no server's name, so this is no server's folder.
    return Cluster(config.default_data("cluster.box"))


def _folder(function: _F) -> _F:
    """Give a command the option `--dir`; it gets a `Cluster` as `box`."""
    return click.option(
        "--dir",
        "box",
        metavar="DIR",
        callback=_place,
        help="Where all of it is; a folder in the platform's state folder.",
    )(function)


_names = click.argument("names", metavar="NAME...", nargs=-1, required=True)


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the cluster as those of the command."""
    from moat_kv.testing import nats
    from moat_kv.testing.cluster import ClusterError, NotThere

    try:
        yield
    except NotThere as exc:
        raise command.Refused(str(exc), command.NOT_FOUND) from exc
    except (ClusterError, nats.NatsFailed) as exc:
        raise command.Refused(str(exc)) from exc


async def _do(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """One call of the cluster, in a thread."""
    with _told():
        return await anyio.to_thread.run_sync(functools.partial(call, *args, **options))


async def _look(box: Cluster) -> list[Seen]:
    from moat_kv.testing import cluster_look

    with _told():
        return await cluster_look.look(box)


async def _until(box: Cluster, condition: Callable[[Sequence[Seen]], bool], limit_s: float) -> bool:
    from moat_kv.testing import cluster_look

    with _told():
        return await cluster_look.until(box, condition, limit_s)


# All of it ---------------------------------------------------------------------------------------


@cluster.command(
    example="moat kv cluster up\nmoat kv cluster up --nodes 1 --servers 2 --dir /tmp/box --port 0\n"
    "sudo moat kv cluster up --netns"
)
@click.option(
    "--nodes",
    type=click.Choice(["1", "3", "5"]),
    metavar="N",
    help="NATS nodes, 1, 3 or 5; long only. [3]",
)
@click.option(
    "--servers",
    type=click.IntRange(1, 32),
    metavar="N",
    help="moat-kv servers; long only. [3]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65000),
    help=f"The first server's, the others' follow; 0 takes free ones. [{FIRST_PORT}]",
)
@click.option(
    "--netns",
    is_flag=True,
    help="Each in its own network namespace, cut by the system itself. Linux, and root.",
)
@_folder
async def up(
    nodes: str | None, servers: int | None, port: int | None, netns: bool, box: Cluster
) -> None:
    """Start a cluster; where there is one, start what is dead of it.

    Returns when all serve. The processes stay in the background until `moat kv cluster down`.
    With --netns, clients reach the servers by Unix sockets.
    """
    _check_installed()
    if netns and port:
        raise click.UsageError("--port has no meaning with --netns: clients use Unix sockets")
    was_there = await _do(lambda: box.exists)
    if was_there:
        _check_same(box, nodes, servers, port, netns)
    try:
        started = await _do(
            box.up,
            nodes=int(nodes or 3),
            servers=servers or 3,
            first_port=FIRST_PORT if port is None else port,
            netns=netns,
        )
        await _until(box, _is_in_touch, SETTLE_S)
    except BaseException as exc:
        with anyio.CancelScope(shield=True):
            if not was_there and not isinstance(exc, Exception):
                await _do(box.down)  # interrupted: as if nothing had been said
        raise
    plan = box.plan
    stores, urls = plan.of_kind("nats"), box.urls
    again = "" if not was_there else " again" if started else " already"
    what = f"{_count(len(stores), 'NATS node')} and {_count(len(urls), 'server')}"
    click.echo(f"{what} are up{again}, in {box.folder}")
    for name, url in zip(box.servers, urls, strict=True):
        click.echo(f"{name}  {url}")
    option = _dir_option(box)
    last = box.servers[-1]
    click.echo(
        f"next: moat kv --url {urls[0]} data lamp set -v : on\n"
        f"      moat kv cluster cut {last}{option}\n"
        f"      moat kv cluster status{option}\n"
        f"      moat kv cluster down{option}"
    )


def _check_same(
    box: Cluster, nodes: str | None, servers: int | None, port: int | None, netns: bool
) -> None:
    """Raises Refused if what is asked for is another cluster than the one that is there."""
    plan = box.plan
    stores, all_servers = plan.of_kind("nats"), plan.of_kind("server")
    differs = (
        int(nodes or len(stores)) != len(stores)
        or (servers or len(all_servers)) != len(all_servers)
        or (port or all_servers[0].port) != all_servers[0].port
    )
    if differs or (netns and not plan.netns):
        there = f"{_count(len(stores), 'NATS node')} and {_count(len(all_servers), 'server')}"
        how = "in namespaces" if plan.netns else f"from port {all_servers[0].port}"
        end = f"moat kv cluster down{_dir_option(box)}"
        raise command.Refused(f"there is one of {there}, {how}, in {box.folder}; `{end}` ends it")


def _dir_option(box: Cluster) -> str:
    """What leads to it, after a command's name."""
    return "" if box.folder == _default_folder() else f" --dir {box.folder}"


def _check_installed() -> None:
    """Raises Refused with what to install."""
    from moat_kv.testing import nats

    missing = [] if importlib.util.find_spec("nats") is not None else ["nats-py"]
    try:
        nats.program()
    except nats.NatsFailed:
        missing.append("nats-server")
    if missing:
        raise command.Refused(
            f"a cluster needs {' and '.join(missing)}: pip install 'moat-kv-fleet[nats]' has both"
        )


def _default_folder() -> pathlib.Path:
    from moat_kv import config

    return config.default_data("cluster.box")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_in_touch(seen: Sequence[Seen]) -> bool:
    return all(each.attached for each in seen if each.kind == "server" and each.state == "up")


@cluster.command(example="moat kv cluster down")
@_folder
async def down(box: Cluster) -> None:
    """End all of it, and remove its files with all that was written."""
    await _do(box.down)
    click.echo("the cluster is down, and nothing is left of it")


@cluster.command(example="moat kv cluster status\nmoat kv cluster status -o json")
@_folder
@output.option
async def status(box: Cluster, out: output.Printer) -> None:
    """Show every server and NATS node, and what it says of itself.

    `attached`: the NATS node by which a server is in touch with the network, or no; which NATS
    node leads it. `outbox`: writes that wait until a server is in touch again.
    """
    # The links themselves are no news unless they are gone, and with them every way.
    seen = [each for each in await _look(box) if each.kind != "links" or each.state != "up"]
    if any(each.kind == "links" for each in seen):
        click.echo("moat: the links do not run; `moat kv cluster up` starts them", err=True)
    out.rows(_COLUMNS, [_for_people(each) if out.for_people else _facts(each) for each in seen])


def _facts(seen: Seen) -> dict[str, Any]:
    """What is known."""
    return {name: each for name, each in dataclasses.asdict(seen).items() if each is not None}


def _for_people(seen: Seen) -> dict[str, Any]:
    """The same, in as few columns as will do."""
    row = _facts(seen)
    row["rev"] = row.pop("revision", None)
    row["attached"] = seen.via if seen.attached is not False else "no"
    return {name: each for name, each in row.items() if each is not None}


# The network -------------------------------------------------------------------------------------


@cluster.command(
    example="moat kv cluster cut s3\n"
    "moat kv cluster cut nats1          # from everybody\n"
    "moat kv cluster cut nats1 nats2    # from each other\n"
    "moat kv cluster cut s1 --one-way   # what it sends is lost"
)
@click.argument("name", metavar="NAME")
@click.argument("others", metavar="[OTHER]...", nargs=-1)
@click.option("--one-way", is_flag=True, help="Only what NAME sends is lost.")
@_folder
async def cut(name: str, others: tuple[str, ...], one_way: bool, box: Cluster) -> None:
    """Cut NAME off from all others, or from those named; nobody is told.

    Waits until servers that are cut off have noticed.
    """
    await _do(box.cut, name, *others, one_way=one_way)
    from_whom = f" from {', '.join(others)}" if others else ""
    way = "; what it sends is lost" if one_way else ""
    noticed = ""
    if name in box.servers and box.plan.is_cut(name):
        if not await _until(box, lambda seen: not _attached(seen, name), NOTICE_S):
            raise command.Refused(
                f"{name} has not noticed within {NOTICE_S:g} s that it is cut off"
            )
        if box.state(name) == "up":
            noticed = ", and has noticed"
    click.echo(f"{name} is cut off{from_whom}{noticed}{way}")


def _attached(seen: Sequence[Seen], name: str) -> bool:
    return any(each.attached for each in seen if each.name == name)


@cluster.command(example="moat kv cluster heal\nmoat kv cluster heal s3")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_folder
async def heal(names: tuple[str, ...], box: Cluster) -> None:
    """End the cuts of NAME, or all; waits until servers have caught up and told what they kept."""
    from moat_kv.testing import cluster_look

    before = {each.name: each.conflicts or 0 for each in await _look(box)}
    await _do(box.heal, *names)
    is_settled = await _until(box, cluster_look.is_settled, SETTLE_S)
    seen = await _look(box)
    if not is_settled:
        late = [each.name for each in seen if not cluster_look.is_settled([each])]
        raise command.Refused(
            f"healed, but not in touch again within {SETTLE_S:g} s: {', '.join(late)}"
        )
    new = sum(max(0, (each.conflicts or 0) - before.get(each.name, 0)) for each in seen)
    click.echo("healed: every server that runs is in touch, and has brought in what it kept")
    if new:
        url = next(each.url for each in seen if each.conflicts is not None)
        click.echo(f"{_count(new, 'conflict')}: moat kv --url {url} conflict list")


# One process -------------------------------------------------------------------------------------


@cluster.command(example="moat kv cluster kill s1\nmoat kv cluster kill nats1 nats2")
@_names
@_folder
async def kill(names: tuple[str, ...], box: Cluster) -> None:
    """End NAME at once, as a crash would (kill -9)."""
    await _do(box.kill, *names)
    click.echo(f"killed: {', '.join(names)}")


@cluster.command(example="moat kv cluster start s1")
@_names
@_folder
async def start(names: tuple[str, ...], box: Cluster) -> None:
    """Start NAME again, with the files that it had; returns when it serves."""
    await _do(box.start, *names)
    click.echo(f"started: {', '.join(names)}")


@cluster.command(example="moat kv cluster freeze nats1")
@_names
@_folder
async def freeze(names: tuple[str, ...], box: Cluster) -> None:
    """Stop NAME where it is (SIGSTOP): it keeps its connections, and does nothing."""
    await _do(box.freeze, *names)
    click.echo(f"frozen: {', '.join(names)}")


@cluster.command(example="moat kv cluster thaw nats1")
@_names
@_folder
async def thaw(names: tuple[str, ...], box: Cluster) -> None:
    """Let a frozen NAME go on."""
    await _do(box.thaw, *names)
    click.echo(f"thawed: {', '.join(names)}")
