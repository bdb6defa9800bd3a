"""Stored modules, mirrored: what is there, what it needs, and a shelf for the finders.

Users call `await ModuleRoot.as_handler(client)` and then write `import`. The runner asks before a
job starts whether all that it requires is there, loads it in order, and compares signatures to see
whether a change concerns a running job. A changed module is forgotten together with what needs it,
and loaded anew on the next import; nothing here restarts anything.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from moat_kv import config, errors
from moat_kv.client.mirror import ClientEntry, ClientRoot
from moat_kv.code import importing, requires, stored_module
from moat_kv.code.stored_module import StoredModule
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.client import Client
    from moat_kv.client.shared import Shared


class ModuleEntry(ClientEntry):
    """An entry below the place of modules."""

    _stored: StoredModule | None = None
    # The revision at which it was last compared.
    _looked_at = -1

    def updated(self) -> None:
        root = self.root
        assert isinstance(root, ModuleRoot)
        root._module_changed(self)

    @property
    def dotted(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def has_code(self) -> bool:
        return stored_module.has_code(self.value)

    @property
    def stored(self) -> StoredModule | None:
        """What an import finds here; None if there is no code here nor below."""
        is_package = any(isinstance(e, ModuleEntry) and e.has_code for e in self.all_children)
        if not is_package and not self.has_code:
            return None
        rev = self.rev if self.has_code else 0
        known = self._stored
        if known is not None and (self._looked_at, known.is_package) == (rev, is_package):
            return known
        found = StoredModule(
            self.dotted, self.value, rev=rev, is_package=is_package, put_aside=self._put_aside
        )
        if not found.is_same(known):
            known = self._stored = found
        self._looked_at = rev
        return known

    def _put_aside(self, stored: StoredModule) -> bool:
        root = self.root
        assert isinstance(root, ModuleRoot)
        if root.compiles_aside:
            self.client.task_group.start_soon(self._compile_aside, stored)
        return root.compiles_aside

    async def _compile_aside(self, stored: StoredModule) -> None:
        root = self.root
        assert isinstance(root, ModuleRoot)
        async with root.aside_turn:
            if self._stored is stored:
                await stored.compile_aside()
        if self._stored is stored:
            root.tell(self)

    @property
    def problem(self) -> errors.MoatKvError | None:
        """Why it cannot be loaded, whatever else is there; None if it can."""
        stored = self.stored
        try:
            if stored is not None:
                requires.module_name(self.path)
                stored.compiled()
                _ = stored.needs
        except errors.MoatKvError as exc:
            return exc
        return None


_roots: weakref.WeakKeyDictionary[Shared, ModuleRoot] = weakref.WeakKeyDictionary()


def of(client: Client) -> ModuleRoot | None:
    """The client's `ModuleRoot`, if it has one."""
    return _roots.get(client.shared)


class ModuleRoot(ClientRoot):
    """All stored modules; plain imports find them for as long as the client is open."""

    child_type = ModuleEntry

    def __init__(self, client: Client, path: Path) -> None:
        super().__init__(client, path)
        self._listeners: list[Callable[[ModuleEntry], None]] = []
        #: As in `CodeRoot`.
        self.compiles_aside = False
        self.aside_turn = anyio.Lock()
        self._on_shelf = anyio.Event()
        self._scope = anyio.CancelScope()

    @classmethod
    def place(cls, places: config.Places) -> Path:
        return places.module

    def start(self) -> None:
        super().start()
        self.client.task_group.start_soon(self._serve)

    def stop(self) -> None:
        super().stop()
        self._scope.cancel()

    async def ready(self) -> None:
        await super().ready()
        await self._on_shelf.wait()

    async def _serve(self) -> None:
        importing.add_shelf(self)
        _roots[self.client.shared] = self
        self._on_shelf.set()
        try:
            with self._scope:
                await anyio.sleep_forever()
        finally:
            importing.remove_shelf(self)
            if _roots.get(self.client.shared) is self:
                del _roots[self.client.shared]

    # Storing ------------------------------------------------------------------------------------

    async def add(
        self,
        path: Path,
        *,
        code: str,
        requires: Sequence[Path | str] = (),
        override: bool = False,
        **facts: Any,
    ) -> None:
        """Store a module; return when it can be imported here.

        `facts` (`version`, `info`) are kept beside the code.

        Raises BadCode, BadValue, and CyclicModules; what it requires may come later.
        """
        value: dict[str, Any] = {"code": code, **facts}
        if requires:
            value["requires"] = list(requires)
        if override:
            value["override"] = True
        self.check_new(path, value)
        await self.follow(path, create=True).update(value)

    async def remove(self, path: Path) -> None:
        """Delete a module's code, and return when that is seen here; modules below it stay."""
        await self.follow(path, create=True).delete()

    def check_new(self, path: Path, value: Any) -> None:
        """Whether a value may be stored as the module at a path. Raises as `add`."""
        name = requires.module_name(path)
        present = self.stored(name)
        is_package = present is not None and present.is_package
        needs = stored_module.check(value, name=name, is_package=is_package)

        def needs_of(other: str) -> Iterable[str]:
            if other == name:
                return needs.stored
            found = self.stored(other)
            return found.needs.stored if found is not None else ()

        requires.load_order([name], needs_of, needed_by=name)

    # Finding ------------------------------------------------------------------------------------

    def stored(self, name: str) -> StoredModule | None:
        """What is stored under a dotted name."""
        entry: ClientEntry | None = self
        for part in name.split("."):
            entry = entry.get(part) if entry is not None else None
        return entry.stored if isinstance(entry, ModuleEntry) else None

    def overriding(self) -> list[str]:
        """The names of those that go before installed modules."""
        entries = [each for each in self.all_children if isinstance(each, ModuleEntry)]
        return [
            entry.dotted for entry in entries if entry.stored is not None and entry.stored.override
        ]

    def order(self, needs: requires.Needs, *, needed_by: str) -> list[str]:
        """What to load for these needs, in order, after seeing that all of it can be loaded.

        Raises MissingModule, CyclicModules, BadCode, BadValue.
        """

        def needs_of(name: str) -> Iterable[str] | None:
            found = self.stored(name)
            return found.needs.stored if found is not None else None

        names = requires.load_order(needs.stored, needs_of, needed_by=needed_by)
        check_installed(needs, needed_by=needed_by)
        for name in names:
            found = self.stored(name)
            assert found is not None  # else it was missing
            found.compiled()
            check_installed(found.needs, needed_by=name)
        return names

    def load(self, needs: requires.Needs, *, needed_by: str) -> None:
        """Import what is needed, dependencies first. May block while the modules' code runs.

        Raises as `order`, and whatever the modules' code raises.
        """
        for name in self.order(needs, needed_by=needed_by):
            importlib.import_module(name)
            if not importing.is_stored(name):
                hint = "an installed module has that name; rename yours, or set `override`"
                raise errors.MissingModule(name, needed_by, hint=hint)

    def check_imports(self, names: Iterable[str]) -> None:
        """See that stored modules which these import statements may load can be loaded.

        What is not stored is none of ours, nor what installed modules hide. Raises BadCode,
        BadValue.
        """
        for name in sorted(self.closure(names)):
            found = self.stored(name)
            if found is None:
                continue
            try:
                found.compiled()
                _ = found.needs
            except errors.MoatKvError:
                if found.override or not importing.is_installed(name):
                    raise

    def closure(self, names: Iterable[str]) -> set[str]:
        """These modules and all stored ones that they may load: required, imported, parents."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            stored = self.stored(name) if name not in found else None
            if stored is None:
                continue
            found.add(name)
            waiting.extend(_links(stored))
        return found

    def signature(self, names: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
        """Differs if any module that these may load does something else than it did."""
        every = sorted(self.closure(names))
        return tuple((name, stored.meaning) for name in every if (stored := self.stored(name)))

    # Changes ------------------------------------------------------------------------------------

    def listen(self, callback: Callable[[ModuleEntry], None]) -> Callable[[], None]:
        """Be called with each entry that has changed, in the event loop; returns what ends that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def _module_changed(self, entry: ModuleEntry) -> None:
        changed = entry.dotted
        before, now = entry._stored, entry.stored
        is_new = before is None or not before.is_same(now)
        stale = [
            name
            for name in importing.loaded()
            if (is_new and (name == changed or name.startswith(changed + ".")))
            or (is_new and changed in self.closure([name]))
            or self._is_reshaped(name)
        ]
        importing.forget(stale)
        self.tell(entry)

    def tell(self, entry: ModuleEntry) -> None:
        """Whoever listens, that something is new about an entry."""
        for each in list(self._listeners):
            each(entry)

    def _is_reshaped(self, name: str) -> bool:
        """A module has become a package, or the other way round, or is gone."""
        stored, loaded = self.stored(name), importing.loaded_from(name)
        return isinstance(loaded, StoredModule) and not loaded.is_same(stored)


def _links(stored: StoredModule) -> Iterator[str]:
    parent = stored.name.rpartition(".")[0]
    if parent:
        yield parent
    try:
        yield from stored.needs.stored
        yield from stored.compiled().imports
    except errors.MoatKvError:
        return  # it cannot be loaded; whoever wants to is told why


def check_installed(needs: requires.Needs, *, needed_by: str) -> None:
    """Raises MissingModule for the first installed package that is missing, or too old."""
    for requirement in needs.installed:
        reason = requires.unmet(requirement)
        if reason is not None:
            raise errors.MissingModule(str(requirement), needed_by, hint=reason)
