"""`code load DIR`: store a folder's modules, procedures and jobs, as its manifest lists them.

`manifest.yaml` has three lists of mappings, `modules`, `code` and `jobs`, whose keys are explained
in examples/onewire/README.md. All is read and checked before anything is stored; an unknown key is
an error. What is stored already stays as it is, so that loading again restarts only what changed.
"""

from __future__ import annotations

import pathlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncclick as click

from moat_kv import config, errors
from moat_kv.path import P, Path
from moat_kv_cli import command, entries, output, placement
from moat_kv_runner import job as spec

FILE_NAME = "manifest.yaml"

_TEXT_KEYS = {"requires", "info", "version"}
_ITEM_KEYS = {"file", "path"} | _TEXT_KEYS
_MODULE_KEYS = _ITEM_KEYS | {"override"}
_CODE_KEYS = _ITEM_KEYS | {"is_async", "vars", "default"}
#: What goes into a job's entry as it is.
_JOB_PLAIN = {
    "data",
    "delay",
    "repeat",
    "backoff",
    "ok_after",
    "max_delay",
    "max_failures",
    "cron",
    "zone",
    "between",
    "jitter",
    "catch_up",
    "overlap",
    "require",
    "prefer",
    "on_split",
    "isolate",
    "share",
    "env",
    "limits",
    "enabled",
    "info",
}
_JOB_KEYS = {"run", "path", "code", "node", "group", "target"} | _JOB_PLAIN
_RUNS = ("at", "any", "all")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a manifest."""

    run: str
    """`at`, `any` or `all`."""
    path: Path
    node: str | None
    group: Path | None
    target_s: float | None
    """Seconds from the time of loading; None: not started."""
    value: Mapping[str, Any]

    def place(self, runs: Path, *, node: str, group: Path) -> Path:
        """Where its entry is; `node` and `group` are for a job that names none."""
        base = runs / self.run
        if self.run == "at":
            base = base / (self.node or node)
        return base + (self.group or group) + self.path

    def entry(self, now: float) -> dict[str, Any]:
        """Its entry's value."""
        target = {} if self.target_s is None else {"target": now + self.target_s}
        return {**self.value, **target}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A folder, read and checked; paths are below their places."""

    modules: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    procedures: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)
    jobs: tuple[Job, ...] = ()


def read(place: str | pathlib.Path) -> Manifest:
    """The manifest in a folder, or the one with that name.

    Raises BadConfig naming the item and the key; BadCode for a file that does not compile.
    """
    from moat_kv_cli import code, module, yamltext

    file = pathlib.Path(place)
    if file.is_dir():
        file = file / FILE_NAME
    try:
        data = yamltext.from_yaml(_text(file))
    except errors.BadValue as exc:
        raise errors.BadConfig(str(file), str(exc.reason)) from exc
    if not isinstance(data, dict) or not data:
        raise errors.BadConfig(str(file), "a mapping with modules, code or jobs is needed")
    unknown = data.keys() - {"modules", "code", "jobs"}
    if unknown:
        raise errors.BadConfig(
            f"{file}: {min(map(str, unknown))}", "unknown; known: modules, code, jobs"
        )
    folder = file.parent
    modules = _texts(folder, "modules", data, _MODULE_KEYS, module.KIND.check)
    for path in modules:
        module.module_path(path)
    return Manifest(
        modules=modules,
        procedures=_texts(folder, "code", data, _CODE_KEYS, code.KIND.check),
        jobs=tuple(_job(name, item) for name, item in _items("jobs", data, _JOB_KEYS)),
    )


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise errors.BadConfig(str(file), str(reason)) from exc


def _items(
    section: str, data: Mapping[str, Any], known: set[str]
) -> list[tuple[str, dict[str, Any]]]:
    """A section's items, each with a name for messages."""
    items = data.get(section) or []
    if not isinstance(items, list):
        raise errors.BadConfig(section, "a list is needed")
    named = []
    for number, item in enumerate(items, 1):
        name = f"{section} {number}"
        if not isinstance(item, dict):
            raise errors.BadConfig(name, "a mapping is needed")
        if "path" in item:
            name = f"{section} {item['path']}"
        for key in item:
            if key not in known:
                raise errors.BadConfig(
                    f"{name}: {key}", f"unknown; known: {', '.join(sorted(known))}"
                )
        named.append((name, item))
    return named


def _path(name: str, item: Mapping[str, Any], key: str) -> Path:
    text = item.get(key)
    if isinstance(text, Path):
        return text
    if not isinstance(text, str):
        raise errors.BadConfig(f"{name}: {key}", "a path is needed, as text")
    try:
        return P(text)
    except errors.BadPath as exc:
        raise errors.BadConfig(f"{name}: {key}", str(exc)) from exc


def _texts(
    folder: pathlib.Path,
    section: str,
    data: Mapping[str, Any],
    known: set[str],
    check: Callable[[str, Mapping[str, Any]], None],
) -> dict[Path, dict[str, Any]]:
    """The entries of a section whose items have files."""
    found: dict[Path, dict[str, Any]] = {}
    for name, item in _items(section, data, known):
        path = _path(name, item, "path")
        if path in found:
            raise errors.BadConfig(name, "comes twice")
        if not isinstance(item.get("file"), str):
            raise errors.BadConfig(f"{name}: file", "a file's name is needed")
        value = {key: each for key, each in item.items() if key not in ("file", "path")}
        if section == "code":
            value.setdefault("is_async", True)
        value["code"] = _text(folder / item["file"])
        try:
            check(str(path), value)
        except errors.BadCode as exc:
            # The reader looks for the file, not for where it would have been stored.
            raise errors.BadCode(item["file"], exc.reason, exc.line, exc.column) from exc
        except errors.BadValue as exc:
            raise errors.BadConfig(f"{name}: {exc.where}", str(exc.reason)) from exc
        found[path] = value
    return found


def _job(name: str, item: Mapping[str, Any]) -> Job:
    run = item.get("run")
    if run not in _RUNS:
        raise errors.BadConfig(f"{name}: run", f"one of {', '.join(_RUNS)}")
    node, target = item.get("node"), item.get("target")
    if node is not None and run != "at":
        raise errors.BadConfig(f"{name}: node", "only with `run: at`")
    if node is not None and not (isinstance(node, str) and node):
        raise errors.BadConfig(f"{name}: node", "a name is needed, as text")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise errors.BadConfig(f"{name}: target", "seconds from now are needed")
    value = {key: each for key, each in item.items() if key in _JOB_PLAIN}
    value["code"] = _path(name, item, "code")
    try:
        spec.parse_spec(value)
    except errors.BadValue as exc:
        raise errors.BadConfig(name, str(exc.reason)) from exc
    return Job(
        run=run,
        path=_path(name, item, "path"),
        node=node,
        group=_path(name, item, "group") if item.get("group") is not None else None,
        target_s=target,
        value=value,
    )


async def store(
    client: Any, found: Manifest, *, node: str, group: Path, with_jobs: bool = True
) -> dict[str, int]:
    """Store it all; how many there were of each. Returns `modules`, `code`, `jobs`."""
    places = await config.load_places(client)
    texts = [(places.module + path, value) for path, value in found.modules.items()]
    texts += [(places.proc + path, value) for path, value in found.procedures.items()]
    await entries.write_all(client, texts, idem=True)
    jobs = found.jobs if with_jobs else ()
    now = time.time()
    # After what they need, so that none finds its code missing.
    await entries.write_all(
        client,
        [(each.place(places.run, node=node, group=group), each.entry(now)) for each in jobs],
    )
    return {"modules": len(found.modules), "code": len(found.procedures), "jobs": len(jobs)}


@click.command(
    "load",
    cls=command.Command,
    example="moat kv code load examples/onewire\nmoat kv code load my/scripts -n pi3 -g heating",
)
@click.argument("folder")
@placement.options_with("For jobs of a node that name none. [this host]")
@click.option("--no-jobs", is_flag=True, help="Only modules and procedures.")
@command.pass_invocation
async def load(invocation: command.Invocation, /, folder: str, no_jobs: bool) -> None:
    """Store the modules, procedures and jobs of FOLDER, by its manifest.yaml; all or nothing.

    Texts that are stored already stay as they are. Jobs are set anew, with the manifest's data and
    start; --no-jobs leaves yours alone. -n and -g are for jobs that do not say where they run.
    """
    found = read(folder)
    which = placement.of(invocation)
    if which.kind == "all":
        raise command.fail("-n - names no node; a job for all nodes says `run: all`")
    async with invocation.client() as client:
        counts = await store(
            client,
            found,
            node=which.node or invocation.config.runner.name or socket.gethostname(),
            group=which.group,
            with_jobs=not no_jobs,
        )
    told = [
        output.counted(counts["modules"], "module"),
        output.counted(counts["code"], "procedure"),
        output.counted(counts["jobs"], "job"),
    ]
    click.echo(f"stored {', '.join(told)}")
