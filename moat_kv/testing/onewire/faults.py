"""Which requests fail and which wait: the faults that somebody has set on the simulated bus.

`answers.py` asks before it touches the bus; `server.py` asks how long to wait before an answer.
Faults are set by name of a device, or for the whole bus with None. Nothing here waits or sends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from moat_kv.testing.onewire.protocol import OwFault

#: What a fault may be limited to.
OPERATIONS = ("list", "read", "write", "present")


@dataclass(kw_only=True, slots=True)
class Failure:
    """Answer with this error; `left` counts down if only so many answers are to fail."""

    code: int
    operations: frozenset[str]
    left: int | None


@dataclass(slots=True)
class Faults:
    """All faults that are set now."""

    failures: dict[str | None, Failure] = field(default_factory=dict)
    delays_s: dict[str | None, float] = field(default_factory=dict)
    #: While true, nothing is answered at all.
    held: bool = False

    def fail(
        self, device: str | None, code: int, operations: frozenset[str], times: int | None
    ) -> None:
        """From now on fail what concerns that device, or with None all that uses the bus."""
        if not 1 <= code <= 209:
            raise ValueError(f"an owserver error is a number from 1 to 209, not {code}")
        unknown = operations - set(OPERATIONS)
        if unknown:
            raise ValueError(f"operations are {', '.join(OPERATIONS)}, not {min(unknown)}")
        self.failures[device] = Failure(code=code, operations=operations, left=times)

    def mend(self, device: str | None) -> None:
        self.failures.pop(device, None)
        self.delays_s.pop(device, None)

    def check(self, device: str | None, operation: str) -> None:
        """Raise OwFault if this use of the bus is to fail; the whole bus' faults come first."""
        for name in dict.fromkeys((None, device)):
            failure = self.failures.get(name)
            if failure is None or operation not in failure.operations:
                continue
            if failure.left is not None:
                failure.left -= 1
                if failure.left <= 0:
                    del self.failures[name]
            raise OwFault(failure.code)

    def wait_s(self, device: str | None) -> float:
        """How long an answer about that device is to wait, in seconds from its request on."""
        if self.held:
            return math.inf
        both = (self.delays_s.get(name, 0.0) for name in dict.fromkeys((None, device)))
        return sum(both)
