"""Stored modules in a child: asked for over a pipe to the runner, which has them in memory.

An import waits for the answer in the thread that imports, whatever runs there; the child's own
event loop has no part in it. What installed modules are called is not asked for.
"""

from __future__ import annotations

import importlib
import os
import socket
import threading
from collections.abc import Collection, Iterable

from moat_kv import errors
from moat_kv.code import importing
from moat_kv.code.stored_module import StoredModule
from moat_kv.proto import messages
from moat_kv_runner.children import wire


class PipeShelf:
    """A `moat_kv.code.importing.Shelf`."""

    def __init__(self, pipe: socket.socket, overrides: Collection[str]) -> None:
        self._pipe = pipe
        self._overrides = frozenset(overrides)
        self._lock = threading.Lock()
        self._known: dict[str, StoredModule | None] = {}
        # A process that the script forks must not speak on the same pipe.
        self._process = os.getpid()

    def stored(self, name: str, /) -> StoredModule | None:
        if not self._is_ours(name):
            return None
        with self._lock:
            if name not in self._known and os.getpid() == self._process:
                self._known[name] = self._ask(name)
            return self._known.get(name)

    def _is_ours(self, name: str) -> bool:
        if name in self._overrides:
            return True
        parent = name.rpartition(".")[0]
        if parent:
            return importing.is_stored(parent)
        return not importing.is_installed(name)

    def _ask(self, name: str) -> StoredModule | None:
        try:
            self._pipe.sendall(wire.packed("import", name=name))
            answer = wire.receive(self._pipe)
        except OSError as exc:
            raise ImportError(f"the runner cannot be asked for {name}: {exc}", name=name) from exc
        if answer is None:
            raise ImportError(f"the runner cannot be asked for {name}", name=name)
        fields = answer.fields
        if "error" in fields:
            raise messages.error_of(fields)
        if "rev" not in fields:
            return None
        value = {"code": fields["text"], "override": fields["override"]}
        return StoredModule(name, value, rev=fields["rev"], is_package=fields["is_package"])

    def load(self, names: Iterable[str], *, needed_by: str) -> None:
        """Import these, in order. Raises MissingModule, and whatever their code raises."""
        for name in names:
            importlib.import_module(name)
            if not importing.is_stored(name):
                hint = "an installed module has that name; rename yours, or set `override`"
                raise errors.MissingModule(name, needed_by, hint=hint)

    def refresh(self, overrides: Collection[str]) -> None:
        """Another run begins in this child: forget what has changed, and what was made of it."""
        loaded = importing.loaded()
        with self._lock:
            self._known.clear()
            self._overrides = frozenset(overrides)
        stale = {name for name in loaded if not self._is_as_loaded(name)}
        while True:
            more = {name for name in loaded if name not in stale and self._uses(name, stale)}
            if not more:
                break
            stale |= more
        importing.forget(stale)

    def _is_as_loaded(self, name: str) -> bool:
        old, new = importing.loaded_from(name), self.stored(name)
        return isinstance(old, StoredModule) and old.is_same(new)

    def _uses(self, name: str, others: set[str]) -> bool:
        old = importing.loaded_from(name)
        if not isinstance(old, StoredModule):
            return False
        parent = name.rpartition(".")[0]
        return parent in others or not others.isdisjoint(old.compiled().imports)
