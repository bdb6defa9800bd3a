"""Whether a job can run here, and with what: procedure, variables, modules. Loads nothing.

`supervision` asks before it starts a run; a job that is not ready waits, with the reason in its
state, and is asked about again whenever code, modules or the job itself change. The signature tells
whether such a change concerns a run that is under way.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moat_kv import codec, errors
from moat_kv.code import compiling, procedures, requires
from moat_kv.code.modules import ModuleRoot, check_installed
from moat_kv.code.procedures import CodeEntry, CodeRoot
from moat_kv.notgiven import NotGiven
from moat_kv.path import Path
from moat_kv_runner.job import RESTARTING, JobSpec

#: The names that every script has, and those that only async ones have.
INJECTED = ("_cfg", "_client", "_cls", "_digits", "_log", "_P", "_Path")
INJECTED_ASYNC = ("_info", "_self")


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a run needs."""

    procedure: compiling.Procedure
    variables: Mapping[str, Any]
    """From the job's data and the procedure's defaults."""
    needs: requires.Needs
    backend: str | None = None
    """The event loop that the procedure asks for."""


def prepare(spec: JobSpec, code: CodeRoot, modules: ModuleRoot, *, inline: bool = True) -> Call:
    """The call that the job asks for. `inline`: it is to run in this process's event loop.

    Raises a MoatKvError that says why it cannot run now: NotFound, BadCode, BadValue,
    MissingVariable, MissingModule, CyclicModules.
    """
    if spec.code is None:
        raise errors.BadValue("the job names no code")
    entry = code.entry(spec.code)
    procedure, needs = entry.procedure, entry.needs
    wanted = entry.value.get("backend")
    if wanted not in (None, "asyncio", "trio"):
        raise errors.BadValue(f"{procedure.name}: backend: asyncio or trio, not {wanted!r}")
    if spec.share is not None and not procedure.is_async:
        raise errors.BadValue(f"share: only async procedures can, {procedure.name} is none")
    if inline and procedure.is_async and wanted not in (None, backend()):
        raise errors.BadValue(f"{procedure.name} is for {wanted}, this runner is on {backend()}")
    variables = procedures.merged(entry.default, spec.data)
    injected = INJECTED + INJECTED_ASYNC if procedure.is_async else INJECTED
    for name in procedure.variables:
        if name not in variables and name not in injected:
            raise errors.MissingVariable(name, procedure.name)
    modules.order(needs, needed_by=procedure.name)
    modules.check_imports(procedure.imports)
    return Call(procedure=procedure, variables=variables, needs=needs, backend=wanted)


def backend() -> str:
    """The event loop that runs here: `asyncio` or `trio`."""
    trio = sys.modules.get("trio")
    return "trio" if trio is not None and trio.lowlevel.in_trio_run() else "asyncio"


def is_fit(spec: JobSpec, code: CodeRoot) -> bool:
    """Whether this node has the packages that the job's procedure requires.

    What is missing in the tree is missing for all nodes alike, so it does not count.
    """
    if spec.code is None:
        return True
    try:
        check_installed(code.entry(spec.code).needs, needed_by="")
    except errors.MissingModule:
        return False
    except errors.MoatKvError:
        return True
    return True


Signature = tuple[Any, ...]


def signature(spec: JobSpec, code: CodeRoot, modules: ModuleRoot) -> Signature:
    """Differs if the job, its procedure, or a module that it may load has changed."""
    parts: list[Any] = [codec.pack([getattr(spec, name) for name in RESTARTING])]
    entry = code.get(spec.code) if isinstance(spec.code, Path) else None
    if isinstance(entry, CodeEntry):
        parts.append(_meaning(entry.value))
        try:
            names = (*entry.needs.stored, *entry.procedure.imports)
        except errors.MoatKvError:
            names = ()
        parts.append(modules.signature(names))
    return tuple(parts)


def digest(signature: Signature) -> bytes:
    """A signature, to be kept with a job's state; 16 bytes."""
    return hashlib.blake2b(codec.pack(signature), digest_size=16).digest()


def _meaning(value: Any) -> bytes:
    """What a stored procedure does; what is for people may be changed at any time."""
    if isinstance(value, Mapping):
        value = {name: each for name, each in value.items() if name not in ("info", "version")}
    return b"" if value is NotGiven else codec.pack(value)
