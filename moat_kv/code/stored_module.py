"""One module as it was stored: its text, compiled once, what it needs, and what it means.

Made by `modules`, from entries; `importing` loads it. It knows nothing of the tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from moat_kv import codec, errors
from moat_kv.code import aside, compiling, requires

#: What of a module's entry tells what it does; the rest is for people.
_MEANING = ("code", "requires", "override")


class StoredModule:
    """A stored module as it was stored, or a package that is made by what lies below it."""

    def __init__(
        self,
        name: str,
        value: Any,
        *,
        rev: int,
        is_package: bool,
        put_aside: Callable[[StoredModule], bool] | None = None,
    ) -> None:
        """`put_aside`: sees to it that it is compiled in another way if that takes long."""
        self.name = name
        self.rev = rev
        self.is_package = is_package
        self.override = isinstance(value, Mapping) and value.get("override") is True
        self._value = value if has_code(value) else {"code": ""}
        #: Another one where it may do something else; 16 bytes, the same on every node.
        self.meaning = _meaning(self._value, is_package)
        self._compiled: compiling.Module | None = None
        #: Why it cannot be compiled, or not yet.
        self._problem: errors.MoatKvError | None = None
        self._put_aside = put_aside

    @property
    def needs(self) -> requires.Needs:
        """Raises BadValue."""
        return requires.parse(self._value.get("requires"))

    @property
    def code(self) -> Any:
        """Its text, if it is one; "" for a package that has none."""
        return self._value["code"]

    def compiled(self) -> compiling.Module:
        """Its code, compiled once. Raises BadCode, Compiling."""
        if self._problem is not None:
            raise self._problem
        if self._compiled is None:
            if aside.is_long(self._value) and self._put_aside is not None and self._put_aside(self):
                self._problem = errors.Compiling(self.name)
                raise self._problem
            self._compiled = compiling.compile_module(self._value["code"], **self._asked())
        return self._compiled

    async def compile_aside(self) -> None:
        """While others go on; what comes of it is told by `compiled`."""
        problem = None
        try:
            self._compiled = await aside.compile_module(self._value["code"], **self._asked())
        except errors.MoatKvError as exc:
            problem = exc
        self._problem = problem

    def _asked(self) -> dict[str, Any]:
        return {"name": self.name, "is_package": self.is_package, "rev": self.rev}

    def is_same(self, other: StoredModule | None) -> bool:
        return other is not None and self.meaning == other.meaning


def _meaning(value: Mapping[str, Any], is_package: bool) -> bytes:
    facts = codec.pack([is_package, *map(value.get, _MEANING)])
    return hashlib.blake2b(facts, digest_size=16).digest()


def has_code(value: Any) -> bool:
    return isinstance(value, Mapping) and "code" in value


def check(value: Any, *, name: str, is_package: bool = False) -> requires.Needs:
    """What a module's entry needs; raises BadCode or BadValue if it cannot be loaded ever."""
    if not has_code(value):
        raise errors.BadValue("a module is a mapping with `code`")
    module = StoredModule(name, value, rev=0, is_package=is_package)
    module.compiled()
    return module.needs
