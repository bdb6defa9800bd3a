"""Whose writes the engine gets next: every client's in turn, however many one of them sends.

`server.Server.submit` gives clients' writes to this. As long as the engine has little to do they go
on to it at once. Beyond that they wait here, each client's in the order in which they came, and
enter in turns; so a client with ten thousand writes in flight delays another one's by what one or
two commits take, and not by its whole queue. Nothing is judged here, nothing refused.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence

from moat_kv.engine.base import Done, Outcome
from moat_kv.entry import Write

#: What one client's turn is worth, in records; one group goes in whole, however large it is.
TURN_RECORDS = 32


class Turns:
    """The writes that wait for their turn.

    `submit` is the engine's, as `Engine.submit`; so many records may be with it as `inside` says.
    """

    def __init__(self, submit: Callable[[Sequence[Write], Done], None], inside: int) -> None:
        self._submit = submit
        self._limit = inside
        #: Records that are with the engine.
        self._inside = 0
        # By client, in the order of their next turns.
        self._queues: OrderedDict[Hashable, deque[tuple[Sequence[Write], Done]]] = OrderedDict()
        self._refilling = False

    @property
    def waiting(self) -> int:
        """How many groups wait here."""
        return sum(len(queue) for queue in self._queues.values())

    def submit(self, owner: Hashable, writes: Sequence[Write], done: Done) -> None:
        """Hand a group of this client's to the engine when its turn has come."""
        if self._inside < self._limit and not self._queues:
            self._hand(writes, done)
        else:
            self._queues.setdefault(owner, deque()).append((writes, done))

    def _hand(self, writes: Sequence[Write], done: Done) -> None:
        count = len(writes)
        self._inside += count

        def ended(outcome: Outcome) -> None:
            self._inside -= count
            done(outcome)
            if self._queues and not self._refilling:
                self._refill()

        self._submit(writes, ended)

    def _refill(self) -> None:
        # What is handed on may be answered at once, and then is back here.
        self._refilling = True
        queues = self._queues
        try:
            while queues and self._inside < self._limit:
                owner, queue = next(iter(queues.items()))
                turn = 0
                while queue and turn < TURN_RECORDS:
                    writes, done = queue.popleft()
                    turn += max(1, len(writes))
                    self._hand(writes, done)
                if queue:
                    queues.move_to_end(owner)
                else:
                    del queues[owner]
        finally:
            self._refilling = False
