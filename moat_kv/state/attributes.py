"""More of a declared attribute than its type: `attribute(default=20.0, check=between(5, 30))`.

Read by `shapes`; nothing here looks at models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

#: Takes a value; False, or an exception, refuses it.
Validator: TypeAlias = "Callable[[Any], object]"


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """What `attribute` makes."""

    default: Any = MISSING
    factory: Callable[[], Any] | None = None
    checks: tuple[Validator, ...] = ()
    doc: str = ""


def attribute(
    *,
    default: Any = MISSING,
    factory: Callable[[], Any] | None = None,
    check: Validator | tuple[Validator, ...] = (),
    doc: str = "",
) -> Any:
    """An attribute of a declared model.

    `default`: each new model gets a copy of it; `factory`: or what this returns. Without either it
    must be given. `check`: called with each new value; False or an exception refuses it. `doc`:
    for the schema.
    """
    if factory is not None and default is not MISSING:
        raise TypeError("an attribute has a default or a factory, not both")
    checks = check if isinstance(check, tuple) else (check,)
    return Attribute(default=default, factory=factory, checks=checks, doc=doc)


@dataclass(frozen=True)
class between:
    """A validator: `low <= value <= high`; None is no limit, and passes as a value."""

    low: Any = None
    high: Any = None

    def __call__(self, value: Any) -> bool:
        if value is None:
            return True
        if self.low is not None and not value >= self.low:
            return False
        return self.high is None or bool(value <= self.high)


@dataclass(frozen=True)
class matches:
    """A validator: the whole text matches the regular expression; None passes."""

    pattern: str

    def __call__(self, value: Any) -> bool:
        return value is None or re.fullmatch(self.pattern, value) is not None


def schema_of(checks: tuple[Validator, ...]) -> dict[str, Any]:
    """What JSON Schema can say of validators."""
    found: dict[str, Any] = {}
    for check in checks:
        if isinstance(check, between):
            limits = {"minimum": check.low, "maximum": check.high}
            found |= {k: v for k, v in limits.items() if isinstance(v, int | float)}
        elif isinstance(check, matches):
            found["pattern"] = f"^(?:{check.pattern})$"
    return found


def describe(check: Validator) -> str:
    """A validator, for people."""
    name = getattr(check, "__name__", None)
    return name if isinstance(name, str) and name != "<lambda>" else repr(check)
