"""Options that belong together, and reach their command as one argument.

`timing`, `isolation` and `trying` say which options these are and what is made of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])


def only_given(**said: Any) -> dict[str, Any]:
    """A mapping of the options that were given."""
    return {name: value for name, value in said.items() if value not in (None, {})}


def gathered(
    argument: str,
    options: Sequence[Callable[[Any], Any]],
    names: Sequence[str],
    made: Callable[..., Any] = only_given,
) -> Callable[[_F], _F]:
    """Give a command all of these options, in this order; it gets what is `made` of them.

    `names`: the parameters that the options fill. `argument`: the one that the command has.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def called(*args: Any, **given: Any) -> Any:
            said = {name: given.pop(name) for name in names}
            return function(*args, **{argument: made(**said)}, **given)

        decorated: Any = called
        for option in reversed(options):
            decorated = option(decorated)
        return cast("_F", decorated)

    return decorate
