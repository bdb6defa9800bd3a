"""`_cfg`: the settings that are in force, as scripts see them: read-only, without credentials."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from moat_kv import config
from moat_kv.path import Path


class View(Mapping[str, Any]):
    """A mapping that is also read by attribute, and cannot be changed."""

    __slots__ = ("_facts",)

    def __init__(self, facts: Mapping[str, Any]) -> None:
        kept = {
            key: View(each) if isinstance(each, Mapping) else each for key, each in facts.items()
        }
        object.__setattr__(self, "_facts", kept)

    def __getitem__(self, key: str) -> Any:
        return self._facts[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._facts[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"the configuration is read-only; cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"the configuration is read-only; cannot delete {name}")

    def __repr__(self) -> str:
        return repr(self._facts)


def as_value(view: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain mappings, to be carried."""
    return {
        key: as_value(each) if isinstance(each, Mapping) else each for key, each in view.items()
    }


def view_of(
    settings: config.Config, places: config.Places, *, name: str, group: Path, isolate: str
) -> View:
    """`server`, `runner` (with the name, group and isolation in force), `places`, and the rest.

    Addresses of servers are left out, because they may hold credentials.
    """
    facts = dataclasses.asdict(settings)
    del facts["client"]
    facts["runner"] |= {"name": name, "group": group, "isolate": isolate}
    # asdict copies deeply, which leaves paths as they are.
    facts["places"] = dataclasses.asdict(places)
    return View(facts)
