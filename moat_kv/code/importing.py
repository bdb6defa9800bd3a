"""Plain `import` statements for stored modules: two finders of our own in `sys.meta_path`.

`modules.ModuleRoot` is a shelf: it says what is stored under a dotted name. One finder stands last,
so that nothing that is installed is shadowed; one stands first and answers only for modules that
say `override`. All shelves of a process share them, because Python's table of modules is shared
too; of several that hold a name the one with the newest revision answers. A module is compiled and
run on its first import, in the thread that imports it, from what is in memory: no I/O.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Protocol

from moat_kv.code import compiling


class Stored(Protocol):
    """A stored module; immutable, a later revision is another object."""

    @property
    def rev(self) -> int: ...
    @property
    def override(self) -> bool: ...
    @property
    def is_package(self) -> bool: ...
    def compiled(self) -> compiling.Module:
        """Its code. Raises BadCode."""


class Shelf(Protocol):
    """Where stored modules are looked up; called from any thread, and must not block."""

    def stored(self, name: str, /) -> Stored | None: ...


class StoredLoader(importlib.abc.InspectLoader):
    """Loads one revision of a stored module."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def is_package(self, fullname: str) -> bool:
        return self.stored.is_package

    def get_source(self, fullname: str) -> str:
        return self.stored.compiled().source.text

    def get_code(self, fullname: str) -> types.CodeType:
        return self.stored.compiled().code

    def exec_module(self, module: types.ModuleType) -> None:
        _loaded.add(module.__name__)
        builtins = compiling.BUILTINS.get()
        if builtins is not None:
            module.__dict__["__builtins__"] = builtins
        exec(self.get_code(module.__name__), module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, *, first: bool) -> None:
        self._first = first

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        stored = _newest(fullname)
        if stored is None or (self._first and not stored.override):
            return None
        parent = fullname.rpartition(".")[0]
        if parent and not stored.override and not is_stored(parent):
            return None  # nothing is added to installed packages either
        loader = StoredLoader(stored)
        return importlib.machinery.ModuleSpec(
            fullname,
            loader,
            origin=f"stored, revision {stored.rev}",
            is_package=stored.is_package,
        )


_FIRST, _LAST = _Finder(first=True), _Finder(first=False)
_shelves: list[Shelf] = []
# Names that were loaded from a shelf at some time; may have been replaced since.
_loaded: set[str] = set()


def _newest(name: str) -> Stored | None:
    found = [stored for shelf in _shelves if (stored := shelf.stored(name)) is not None]
    return max(found, key=lambda stored: stored.rev, default=None)


def add_shelf(shelf: Shelf) -> None:
    """Let imports find what is on this shelf."""
    if not _shelves:
        sys.meta_path.insert(0, _FIRST)
        sys.meta_path.append(_LAST)
    _shelves.append(shelf)


def remove_shelf(shelf: Shelf) -> None:
    """Imports do not find it any more; what no other shelf has is forgotten."""
    _shelves.remove(shelf)
    forget(name for name in loaded() if _newest(name) is None)
    if not _shelves:
        sys.meta_path.remove(_FIRST)
        sys.meta_path.remove(_LAST)


def is_installed(name: str) -> bool:
    """Whether a module of that name, or the package that it were in, is there without us."""
    top = name.partition(".")[0]
    if top in sys.builtin_module_names:
        return True
    return importlib.machinery.PathFinder.find_spec(top) is not None


def is_stored(name: str) -> bool:
    """Whether the loaded module of that name came from a shelf."""
    return loaded_from(name) is not None


def loaded_from(name: str) -> Stored | None:
    """What the loaded module of that name was made of, if it came from a shelf."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    return loader.stored if isinstance(loader, StoredLoader) else None


def loaded() -> list[str]:
    """The names of the loaded modules that came from a shelf."""
    return sorted(name for name in _loaded if is_stored(name))


def forget(names: Iterable[str]) -> None:
    """Load these anew on their next import; others that came from elsewhere are left alone.

    Code that has imported one keeps what it has.
    """
    for name in list(names):
        if not is_stored(name):
            continue
        _loaded.discard(name)
        module = sys.modules.pop(name)
        parent, _, child = name.rpartition(".")
        # `from parent import child` would go on finding the old one there.
        if parent and getattr(sys.modules.get(parent), child, None) is module:
            delattr(sys.modules[parent], child)
