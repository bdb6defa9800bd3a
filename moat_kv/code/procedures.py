"""Stored procedures, mirrored and callable by name.

Users call `cr = await CodeRoot.as_handler(client)` and then `cr("forty.two", x=1)`: the procedure
runs in their process, without the names that a runner injects. The runner takes an entry's compiled
procedure and its needs from here and runs it itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.to_thread

from moat_kv import codec, config, errors
from moat_kv.client.client import Client
from moat_kv.client.mirror import ClientEntry, ClientRoot
from moat_kv.code import aside, compiling, modules, requires
from moat_kv.notgiven import NotGiven
from moat_kv.path import P, Path

Name = str | Path | tuple[Any, ...] | list[Any]
"""How a procedure may be named: a path, its text, or a sequence of its elements."""


def as_path(name: Name) -> Path:
    """Raises BadPath, TypeError."""
    if isinstance(name, Path):
        return name
    return P(name) if isinstance(name, str) else Path.build(name)


def merged(*layers: Any) -> codec.AttrDict:
    """One mapping of several, later ones first in rank; mappings in them are merged deeply.

    Raises BadValue for a layer that is no mapping with texts as keys.
    """
    result = codec.AttrDict()
    for layer in layers:
        if not isinstance(layer, Mapping) or not all(isinstance(key, str) for key in layer):
            raise errors.BadValue("variables are a mapping from names")
        result = _merge(result, layer)
    return result


def _merge(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> codec.AttrDict:
    result = codec.AttrDict(old)
    for key, value in new.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            result[key] = _merge(before, value)
        else:
            result[key] = value
    return result


def check(value: Any, *, name: str, rev: int = 0) -> tuple[compiling.Procedure, requires.Needs]:
    """A procedure's entry, compiled, and what it needs. Raises BadCode, BadValue."""
    asked = _asked(value, name=name, rev=rev)
    return compiling.compile_procedure(**asked), _needs(value)


async def check_aside(
    value: Any, *, name: str, rev: int
) -> tuple[compiling.Procedure, requires.Needs]:
    """The same, while others go on."""
    asked = _asked(value, name=name, rev=rev)
    return await aside.compile_procedure(**asked), _needs(value)


def _asked(value: Any, *, name: str, rev: int) -> dict[str, Any]:
    """What the compiler is to be asked."""
    if not isinstance(value, Mapping) or "code" not in value:
        raise errors.BadValue(f"{name}: a procedure is a mapping with `code`")
    return {
        "text": value["code"],
        "name": name,
        "is_async": value.get("is_async"),
        "variables": value.get("vars") or (),
        "rev": rev,
    }


def _needs(value: Mapping[str, Any]) -> requires.Needs:
    default = value.get("default")
    if default is not None:
        merged(default)
    return requires.parse(value.get("requires"))


class CodeEntry(ClientEntry):
    """An entry below the place of procedures."""

    _checked: tuple[compiling.Procedure, requires.Needs] | None = None
    _problem: errors.MoatKvError | None = None

    def updated(self) -> None:
        self._checked = self._problem = None
        root = self.root
        assert isinstance(root, CodeRoot)
        root.tell(self)

    def _check(self) -> tuple[compiling.Procedure, requires.Needs]:
        if self._problem is not None:
            raise self._problem
        if self._checked is None:
            name = str(self.path)
            try:
                if self.value is NotGiven:
                    raise errors.NotFound("procedure", name)
                if self._is_for_aside():
                    self.client.task_group.start_soon(self._check_aside)
                    raise errors.Compiling(name)
                self._checked = check(self.value, name=name, rev=self.rev)
            except errors.MoatKvError as exc:
                self._problem = exc
                raise
        return self._checked

    def _is_for_aside(self) -> bool:
        root = self.root
        assert isinstance(root, CodeRoot)
        return root.compiles_aside and aside.is_long(self.value)

    async def _check_aside(self) -> None:
        root, value, rev = self.root, self.value, self.rev
        assert isinstance(root, CodeRoot)
        checked, problem = None, None
        async with root.aside_turn:
            if self.value is not value:
                return
            try:
                checked = await check_aside(value, name=str(self.path), rev=rev)
            except errors.MoatKvError as exc:
                problem = exc
        if self.value is value:
            self._checked, self._problem = checked, problem
            root.tell(self)

    @property
    def problem(self) -> errors.MoatKvError | None:
        """Why it cannot be called, whoever calls it; None if it can."""
        try:
            self._check()
        except errors.MoatKvError as exc:
            return exc
        return None

    @property
    def procedure(self) -> compiling.Procedure:
        """Compiled, once for each revision. Raises NotFound, BadCode, BadValue, Compiling."""
        return self._check()[0]

    @property
    def needs(self) -> requires.Needs:
        """Raises as `procedure`."""
        return self._check()[1]

    @property
    def default(self) -> Mapping[str, Any]:
        """Values of variables that nobody else gives."""
        return self.value.get("default") or {} if isinstance(self.value, Mapping) else {}


class CodeRoot(ClientRoot):
    """All stored procedures."""

    child_type = CodeEntry

    def __init__(self, client: Client, path: Path) -> None:
        super().__init__(client, path)
        self._listeners: list[Callable[[CodeEntry], None]] = []
        #: Long texts are compiled aside; until one is, it cannot be called (`Compiling`).
        self.compiles_aside = False
        self.aside_turn = anyio.Lock()

    @classmethod
    def place(cls, places: config.Places) -> Path:
        return places.proc

    async def add(
        self,
        path: Name,
        *,
        code: str,
        is_async: bool | None = None,
        variables: Sequence[str] = (),
        default: Mapping[str, Any] | None = None,
        requires: Sequence[Path | str] = (),
        **facts: Any,
    ) -> None:
        """Store a procedure; return when it can be called here.

        `is_async` None: quick and synchronous; False: in a worker thread; True: async. `facts`
        (`version`, `info`) are kept beside the code. Raises BadCode, BadValue.
        """
        value: dict[str, Any] = {"code": code, "is_async": is_async, **facts}
        if variables:
            value["vars"] = list(variables)
        if default:
            value["default"] = dict(default)
        if requires:
            value["requires"] = list(requires)
        where = as_path(path)
        check(value, name=str(where))
        await self.follow(where, create=True).update(value)

    async def remove(self, path: Name) -> None:
        """Delete a procedure; return when it cannot be called here any more."""
        where = as_path(path)
        await self.follow(where, create=True).delete()

    def entry(self, name: Name) -> CodeEntry:
        """The entry of a procedure that is there. Raises NotFound."""
        found = self.get(as_path(name))
        if not isinstance(found, CodeEntry) or found.value is NotGiven:
            raise errors.NotFound("procedure", str(as_path(name)))
        return found

    def __call__(self, name: Name, /, *args: Any, **kwargs: Any) -> Any:
        """Run a procedure in this process.

        `args` are taken as its `vars`, in order; `kwargs` and its `default` are its other globals.
        Returns its result, or an awaitable of it if the procedure is async or for a thread.

        Raises NotFound, BadCode, MissingVariable, MissingModule, CyclicModules, BadValue, and what
        the procedure raises.
        """
        entry = self.entry(name)
        procedure = entry.procedure
        if len(args) > len(procedure.variables):
            given, taken = len(args), len(procedure.variables)
            raise TypeError(f"{procedure.name} takes {taken} arguments in order, got {given}")
        in_order = dict(zip(procedure.variables, args, strict=False))
        twice = in_order.keys() & kwargs.keys()
        if twice:
            raise TypeError(f"{procedure.name} got two values for {min(twice)}")
        call = procedure.bind(merged(entry.default, in_order, kwargs))
        self._load(entry)
        return _in_thread(call) if procedure.is_async is False else call()

    def _load(self, entry: CodeEntry) -> None:
        needs = entry.needs
        if needs == requires.Needs():
            return
        needed_by = str(entry.path)
        root = modules.of(self.client)
        if root is not None:
            root.load(needs, needed_by=needed_by)
            return
        modules.check_installed(needs, needed_by=needed_by)
        if needs.stored:
            hint = "call ModuleRoot.as_handler(client) first"
            raise errors.MissingModule(needs.stored[0], needed_by, hint=hint)

    def listen(self, callback: Callable[[CodeEntry], None]) -> Callable[[], None]:
        """Be called with each entry that has changed, in the event loop; returns what ends that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def tell(self, entry: CodeEntry) -> None:
        """Whoever listens, that something is new about an entry."""
        for each in list(self._listeners):
            each(entry)


async def _in_thread(call: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(call)
