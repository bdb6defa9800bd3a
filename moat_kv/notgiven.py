"""`NotGiven`: the absence of a value where None is itself one.

Used for optional arguments and for entries without a value; it is false, and there is only one.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias


class _Absence(enum.Enum):
    NOT_GIVEN = "NotGiven"

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        return "NotGiven"

    __str__ = __repr__


#: The type, for annotations: `value: int | NotGivenType = NotGiven`.
NotGivenType: TypeAlias = Literal[_Absence.NOT_GIVEN]

NotGiven: Final = _Absence.NOT_GIVEN
