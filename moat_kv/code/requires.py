"""What code requires: stored modules, and packages that are installed on the node.

`procedures` and `modules` parse an entry's `requires` here and ask in which order modules load;
the runner asks for what is unmet before it starts a job. Reads the metadata of installed packages,
nothing else; loads nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from moat_kv import errors
from moat_kv.path import P, Path

INSTALLED_PREFIX = "py:"

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|>|<)\s*([A-Za-z0-9.!+_-]+?)(\.\*)?\s*")
#: The shape of versions, after PEP 440; the local part behind `+` is not compared.
_VERSION = re.compile(
    r"v?(?:(?P<epoch>\d+)!)?(?P<release>\d+(?:\.\d+)*)"
    r"(?:[-_.]?(?P<pre>alpha|beta|preview|pre|rc|a|b|c)[-_.]?(?P<pre_n>\d*))?"
    r"(?P<post>[-_.]?(?:post|rev|r)[-_.]?(?P<post_n>\d*)|-(?P<post_bare>\d+))?"
    r"(?P<dev>[-_.]?dev[-_.]?(?P<dev_n>\d*))?"
    r"(?:\+[a-z0-9._-]+)?",
    re.IGNORECASE,
)
_PRE_RANK = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One comparison, such as `>=1.2`, or `==1.*` with `any_end`."""

    compare: str
    version: str
    any_end: bool = False

    def __str__(self) -> str:
        return f"{self.compare}{self.version}{'.*' if self.any_end else ''}"


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """An installed package, by its distribution's name."""

    name: str
    clauses: tuple[Clause, ...] = ()

    def __str__(self) -> str:
        return INSTALLED_PREFIX + self.name + ",".join(map(str, self.clauses))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """An entry's `requires`, parsed: dotted names of stored modules, and installed packages."""

    stored: tuple[str, ...] = ()
    installed: tuple[Requirement, ...] = ()


def parse(requires: Any) -> Needs:
    """The needs in a list of paths (values or texts) and of texts `py:NAME>=VERSION,<VERSION`.

    Raises BadValue naming the item that cannot be.
    """
    if requires is None:
        return Needs()
    if isinstance(requires, str | bytes) or not isinstance(requires, list | tuple):
        raise errors.BadValue("requires is a list", "requires")
    stored: list[str] = []
    installed: list[Requirement] = []
    for item in requires:
        if isinstance(item, str) and item.startswith(INSTALLED_PREFIX):
            installed.append(_requirement(item))
        else:
            stored.append(_stored(item))
    return Needs(stored=tuple(stored), installed=tuple(installed))


def _stored(item: Any) -> str:
    if isinstance(item, str):
        try:
            item = P(item)
        except errors.BadPath as exc:
            raise errors.BadValue(str(exc), "requires") from exc
    if not isinstance(item, Path):
        raise errors.BadValue(f"{item!r} is neither a path nor py:NAME", "requires")
    return module_name(item)


def module_name(path: Path) -> str:
    """The dotted name of the module stored at a path, below the place of modules.

    Raises BadValue unless all elements are identifiers.
    """
    for element in path:
        named = isinstance(element, str) and element.isidentifier()
        if not named or keyword.iskeyword(str(element)):
            reason = f"{element!r} in {path} cannot be a module's name"
            raise errors.BadValue(reason, "requires")
    if not path:
        raise errors.BadValue("the root cannot be a module", "requires")
    return ".".join(map(str, path))


def _requirement(text: str) -> Requirement:
    rest = text.removeprefix(INSTALLED_PREFIX).strip()
    name = _NAME.match(rest)
    if name is None:
        raise errors.BadValue(f"{text!r} names no package", "requires")
    clauses: list[Clause] = []
    tail = rest[name.end() :].strip()
    for part in tail.split(",") if tail else []:
        found = _CLAUSE.fullmatch(part)
        if found is None or _VERSION.fullmatch(found[2]) is None:
            raise errors.BadValue(f"{part.strip()!r} in {text!r} is no comparison", "requires")
        if found[3] and found[1] not in ("==", "!="):
            raise errors.BadValue(f"{part.strip()!r}: only == and != go with .*", "requires")
        if found[1] == "~=" and "." not in found[2]:
            raise errors.BadValue(f"{part.strip()!r}: ~= needs two numbers", "requires")
        clauses.append(Clause(compare=found[1], version=found[2], any_end=bool(found[3])))
    return Requirement(name=name[0], clauses=tuple(clauses))


def _release(version: str) -> tuple[int, ...]:
    found = _VERSION.fullmatch(version)
    assert found is not None  # checked by whoever parsed the clause
    return tuple(map(int, found["release"].split(".")))


def version_key(version: str) -> tuple[Any, ...]:
    """Something that sorts as versions do: 1.0.dev1 < 1.0a1 < 1.0rc1 < 1.0 == 1.0.0 < 1.0.post1.

    Raises ValueError for what is no version.
    """
    found = _VERSION.fullmatch(version.strip())
    if found is None:
        raise ValueError(version)
    release = tuple(map(int, found["release"].split(".")))
    while len(release) > 1 and not release[-1]:
        release = release[:-1]
    lowest, highest = (-1, 0), (9, 0)
    post = (0, int(found["post_n"] or found["post_bare"] or 0)) if found["post"] else lowest
    dev = (0, int(found["dev_n"] or 0)) if found["dev"] else highest
    if found["pre"]:
        pre = (_PRE_RANK[found["pre"].lower()], int(found["pre_n"] or 0))
    else:
        pre = lowest if found["dev"] and not found["post"] else highest
    return (int(found["epoch"] or 0), release, pre, post, dev)


def satisfies(version: str, clause: Clause) -> bool:
    """Whether a version fits one comparison. Raises ValueError for what is no version."""
    have = version_key(version)
    if clause.any_end or clause.compare == "~=":
        prefix = _release(clause.version)
        if clause.compare == "~=":
            if have < version_key(clause.version):
                return False
            prefix = prefix[:-1]
        found = _VERSION.fullmatch(version.strip())
        assert found is not None
        release = tuple(map(int, found["release"].split(".")))
        padded = release + (0,) * (len(prefix) - len(release))
        return (padded[: len(prefix)] == prefix) is (clause.compare != "!=")
    return _COMPARE[clause.compare](have, version_key(clause.version))


def unmet(requirement: Requirement) -> str | None:
    """Why an installed package does not do, or None if it does."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if not requirement.clauses and _is_importable(requirement.name):
            return None
        return f"package {requirement.name} is not installed"
    for clause in requirement.clauses:
        try:
            fits = satisfies(version, clause)
        except ValueError:
            fits = False
        if not fits:
            return f"package {requirement.name} is {version}, needed is {clause}"
    return None


def _is_importable(name: str) -> bool:
    """Parts of Python itself have no metadata."""
    return name.isidentifier() and importlib.util.find_spec(name) is not None


def load_order(
    names: Iterable[str],
    needs_of: Callable[[str], Iterable[str] | None],
    *,
    needed_by: str,
) -> list[str]:
    """All that must be loaded for these modules and these modules themselves, dependencies first.

    `needs_of` gives what a module needs, or None if it is not there; `needed_by` names who asks.
    Raises MissingModule, and CyclicModules with the cycle named, `a -> b -> a`.
    """
    done: dict[str, None] = {}
    trail: list[str] = []
    # An explicit stack: a chain of modules may be longer than Python's.
    stack: list[Iterator[str]] = [iter(tuple(names))]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
            if trail:
                done[trail.pop()] = None
            continue
        if name in done:
            continue
        if name in trail:
            cycle = [*trail[trail.index(name) :], name]
            raise errors.CyclicModules(" -> ".join(cycle))
        needs = needs_of(name)
        if needs is None:
            raise errors.MissingModule(name, trail[-1] if trail else needed_by)
        trail.append(name)
        stack.append(iter(tuple(needs)))
    return list(done)
