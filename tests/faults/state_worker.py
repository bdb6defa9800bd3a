"""One process of `state_counts`: adds one to a shared model, again and again.

`python -m tests.faults.state_worker URL[,URL] TIMES [THREADS]` prints what became of it as JSON.
A commit that was refused is made again; one that is `Unknown` is not, and is reported.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter as Tally

from moat_kv import errors
from moat_kv.state import LockTimeout, StaleModel, State, StateModel, attach

#: How long to wait after a refusal, in seconds.
PAUSE_S = 0.02
#: What says that nothing has happened.
REFUSALS = (
    StaleModel,
    LockTimeout,
    errors.Detached,
    errors.Disconnected,
    errors.RequestTimeout,
    errors.SessionExpired,
    errors.StaleFence,
    errors.StorageFailed,
)


class Sum(StateModel):
    """What is counted."""

    n: int = 0


def add(times: int, tally: Tally[str]) -> None:
    """Add so many ones; `tally` has how many were `done`, `unknown`, and refused, by error."""
    left = times
    while left:
        try:
            with State(Sum) as state:
                total = state.checkout(Sum)
                total.n += 1
                try:
                    state.commit(total)
                except errors.Unknown:
                    tally["unknown"] += 1
                else:
                    tally["done"] += 1
                left -= 1
        except REFUSALS as exc:
            tally[type(exc).__name__] += 1
            time.sleep(PAUSE_S)


def add_in_threads(times: int, threads: int) -> Tally[str]:
    """The same in several threads, each `times`."""
    tallies: list[Tally[str]] = [Tally() for _ in range(threads)]
    running = [threading.Thread(target=add, args=(times, tally)) for tally in tallies]
    for each in running:
        each.start()
    for each in running:
        each.join()
    return sum(tallies, Tally())


def load() -> None:
    with State() as state:
        state.load(Sum())


def main() -> None:
    urls, times = sys.argv[1].split(","), int(sys.argv[2])
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    with attach(urls):
        load()
        print("ready", flush=True)
        sys.stdin.readline()  # all begin together
        tally = add_in_threads(times, threads)
    print(json.dumps(tally), flush=True)


if __name__ == "__main__":
    main()
