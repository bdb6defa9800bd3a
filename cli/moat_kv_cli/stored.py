"""What `code` and `module` have in common: stored texts, with their history.

The two modules give their place, how a text is checked, and what is shown beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import asyncclick as click

from moat_kv import config, errors
from moat_kv.path import Path
from moat_kv_cli import command, entries, output, values, verbs

if TYPE_CHECKING:
    from moat_kv import Client

#: What a kind's entry must pass before it is stored: raises BadCode or BadValue.
Check = Callable[[str, Mapping[str, Any]], None]


requires_option = click.option(
    "--require",
    "requires",
    multiple=True,
    metavar="MODULE",
    help="A stored module, or py:NAME>=VERSION for an installed package; repeatable; -: none.",
)


def listed(given: tuple[str, ...], option: str) -> list[str] | None:
    """What a repeatable option says: a list, empty for a lone `-`; None if it was not given."""
    if "-" in given and len(given) > 1:
        raise command.fail(f"{option}: - stands alone; it takes all away")
    return None if not given else [] if given == ("-",) else list(given)


class Kind:
    """Procedures or modules."""

    def __init__(
        self, word: str, place: str, check: Check, columns: tuple[str, ...], *, example: str
    ) -> None:
        self.word = word  # "procedure", "module"
        self.place = place  # the name of its place, see `config.Places`
        self.check = check
        self.columns = columns
        self.example = example  # a path, for help

    async def base(self, client: Client) -> Path:
        path: Path = getattr(await config.load_places(client), self.place)
        return path

    async def current(self, client: Client, path: Path) -> Any:
        """The entry, whose value is a mapping with code. Raises NotFound."""
        result = await client.get(await self.base(client) + path)
        if "value" not in result:
            below = len(await client.list(await self.base(client) + path))
            raise errors.NotFound(self.word, str(path), **entries.hint_below(below))
        return result


def show(result: Any, path: Path, out: output.Printer, *, long: bool) -> None:
    """Print a stored text, or all that is stored with it."""
    value = result["value"]
    code = value.get("code") if isinstance(value, dict) else None
    if not isinstance(code, str):
        out.value(value)
    elif long or out.format in ("json", "jsonl", "yaml"):
        more = {key: item for key, item in value.items() if key != "code" or not out.for_people}
        out.facts({"path": str(path), "rev": result["rev"], "at": result["at"], **more})
        if out.for_people:
            out.note("")
            out.value(code)
    elif code or not out.for_people:
        out.value(code)


def register(group: verbs.PathGroup, kind: Kind) -> None:
    """Add the verbs that both kinds have: get, list, delete, history, revert."""
    _register_get(group, kind)
    _register_list(group, kind)
    _register_delete(group, kind)
    _register_history(group, kind)
    _register_revert(group, kind)


def _register_get(group: verbs.PathGroup, kind: Kind) -> None:
    @group.command(
        short_help=f"Print a {kind.word}.", example=f"moat kv {group.name} {kind.example} get"
    )
    @click.option("-l", "--long", is_flag=True, help="What is stored with the text, too.")
    @click.option("--rev", type=int, metavar="REV", help="An earlier version; see history.")
    @output.option
    @command.pass_invocation
    async def get(
        invocation: command.Invocation, /, long: bool, rev: int | None, out: output.Printer
    ) -> None:
        """Print the text; with -o json or yaml, all that is stored."""
        path = invocation.here
        async with invocation.client() as client:
            if rev is None:
                result = await kind.current(client, path)
            else:
                result = await _version(client, kind, path, rev)
        show(result, path, out, long=long)


def _register_list(group: verbs.PathGroup, kind: Kind) -> None:
    @group.command("list", example=f"moat kv {group.name} : list")
    @output.option
    @command.pass_invocation
    async def list_(invocation: command.Invocation, /, out: output.Printer) -> None:
        """List what is stored at a path and below."""
        path = invocation.here
        async with invocation.client() as client:
            base = await kind.base(client)
            found = {path + each.path: each async for each in client.get_tree(base + path)}
        rows = [
            {"path": str(place), "at": each.at, **_beside(each.value, kind)}
            for place, each in sorted(found.items())
        ]
        out.rows(["path", *kind.columns, "at", "info"], rows)


def _beside(value: Any, kind: Kind) -> dict[str, Any]:
    """What is stored with a text, for a row."""
    if not isinstance(value, dict):
        return {"info": "(not code)"}
    shown = {key: item for key, item in value.items() if key not in ("code", "path", "at")}
    if "kind" in kind.columns:
        shown["kind"] = {True: "async", False: "thread", None: "sync"}.get(value.get("is_async"))
    return shown


def _register_delete(group: verbs.PathGroup, kind: Kind) -> None:
    @group.command(example=f"moat kv {group.name} {kind.example} delete")
    @command.pass_invocation
    async def delete(invocation: command.Invocation, /) -> None:
        """Delete it. What uses it waits until it is there again."""
        path = invocation.here
        async with invocation.client() as client:
            done = await entries.delete(client, await kind.base(client) + path)
        if done is None:
            raise errors.NotFound(kind.word, str(path))


def _register_history(group: verbs.PathGroup, kind: Kind) -> None:
    @group.command(example=f"moat kv {group.name} {kind.example} history")
    @click.option("--limit", type=click.IntRange(1), default=20, metavar="N", help="At most. [20]")
    @output.option
    @command.pass_invocation
    async def history(invocation: command.Invocation, /, limit: int, out: output.Printer) -> None:
        """List the kept versions, the newest first; `get --rev` prints one."""
        path = invocation.here
        async with invocation.client() as client:
            versions = await client.history(await kind.base(client) + path, limit=limit)
        if not versions:
            raise errors.NotFound(f"history of {kind.word}", str(path))
        rows = [_version_row(each, kind) for each in versions]
        out.rows(["rev", "at", "lines", "info"], rows)


def _version_row(version: Any, kind: Kind) -> dict[str, Any]:
    row = {"rev": version["rev"], "at": version["at"], "id": version["id"]}
    if "value" not in version:
        return {**row, "deleted": True, "info": "(deleted)"}
    value = version["value"]
    code = value.get("code") if isinstance(value, dict) else None
    lines = len(code.splitlines()) if isinstance(code, str) else None
    return {**row, "lines": lines, "info": _beside(value, kind).get("info"), "value": value}


def _register_revert(group: verbs.PathGroup, kind: Kind) -> None:
    @group.command(
        example=f"moat kv {group.name} {kind.example} history\n"
        f"moat kv {group.name} {kind.example} revert 17"
    )
    @click.argument("rev", type=int, required=False)
    @output.option
    @command.pass_invocation
    async def revert(
        invocation: command.Invocation, /, rev: int | None, out: output.Printer
    ) -> None:
        """Put an earlier version back: that of revision REV, or the one before the present."""
        path = invocation.here
        async with invocation.client() as client:
            place = await kind.base(client) + path
            now = await client.get(place)
            old = await _version(client, kind, path, rev, before=now.rev)
            result = await client.set(place, old["value"], expect=now.rev)
        out.note(f"the version of revision {old['rev']} is back, as revision {result.rev}")
        out.done({"path": str(path), "rev": result.rev, "at": result.at, "was": old["rev"]})


async def _version(
    client: Client, kind: Kind, path: Path, rev: int | None, *, before: int | None = None
) -> Any:
    """An earlier version that has a value: the one of a revision, or the newest before another."""
    versions = await client.history(await kind.base(client) + path, limit=1000)
    if not versions:
        raise errors.NotFound(kind.word, str(path))
    for each in versions:
        fits = each["rev"] == rev if rev is not None else not before or each["rev"] < before
        if fits and "value" in each:
            return each
    name = f"{path} of revision {rev}" if rev is not None else f"{path} that is older"
    raise errors.NotFound(f"version of {kind.word}", name)


async def store(
    client: Client,
    kind: Kind,
    path: Path,
    attributes: Mapping[str, Any],
    default: values.Change | None = None,
) -> Any:
    """Check and store: these attributes over those that are there. Returns the write's result.

    Raises BadCode, BadValue; UsageError if there is no text, neither given nor stored.
    """

    def merged(old: Any) -> dict[str, Any]:
        value = dict(old) if isinstance(old, dict) else {}
        value.update(attributes)
        if default:
            value["default"] = default.apply(value.get("default", values.NOTHING))
        if "code" not in value:
            raise command.fail(f"no {kind.word} {path} yet; give its text with -s FILE (- to pipe)")
        kind.check(str(path), value)
        return value

    return await entries.change(client, await kind.base(client) + path, merged)
