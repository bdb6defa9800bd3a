"""Taking turns: each contestant has its round, then the next one, again and again.

A machine that others use is slower at one time than at another. What is compared is therefore
measured in turns of a fraction of a second, and the ratio of two contestants is the median of
their ratios round by round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import anyio

from benchmarks import outcome

Round = Callable[[], Awaitable[float]]
"""One round of one contestant; gives its figure."""

Call = Callable[[int], Awaitable[object]]
"""One call of a client; the number says which of the entries."""


def median(figures: Iterable[float]) -> float:
    return statistics.median(figures)


def ratio(figures: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios round by round.

    The longer of the two begins with rounds that do not count.
    """
    count = min(len(figures), len(others))
    return median(a / b for a, b in zip(figures[-count:], others[-count:], strict=True))


def spread(figures: Sequence[float], others: Sequence[float]) -> outcome.Spread:
    """The ratios round by round. Both have as many rounds."""
    ratios = [a / b for a, b in zip(figures, others, strict=True)]
    if len(ratios) < 2:
        return outcome.Spread(median=ratios[0], low=ratios[0], high=ratios[0])
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return outcome.Spread(median=middle, low=low, high=high)


class Series(dict[str, list[float]]):
    """Each contestant's figures, one a round."""

    def median(self, name: str) -> float:
        return median(self[name])

    def ratio(self, name: str, other: str) -> float:
        """How many times `other`'s figure `name`'s is: the median over the rounds."""
        return ratio(self[name], self[other])

    def without(self, name: str) -> Series:
        """The others' figures."""
        return Series({other: figures for other, figures in self.items() if other != name})


async def alternate(
    contestants: Mapping[str, Round], rounds: int, *, warm_up: bool = True
) -> Series:
    """Let all contestants take turns, after one round each that does not count (`warm_up`)."""
    series = Series({name: [] for name in contestants})
    for number in range(0 if warm_up else 1, rounds + 1):
        order = list(contestants.items())
        for name, play in reversed(order) if number % 2 else order:
            gc.collect()
            figure = await play()
            if number:
                series[name].append(figure)
    return series


async def round_trip(call: Call, calls: int) -> float:
    """Calls one after the other: the median of their times, in seconds."""
    times = []
    for number in range(calls):
        began = time.perf_counter()
        await call(number)
        times.append(time.perf_counter() - began)
    return median(times)


async def rate(call: Call, calls: int, in_flight: int) -> float:
    """Calls by so many tasks, each waiting for its answer: how many a second altogether."""
    each = max(1, calls // in_flight)

    async def worker(first: int) -> None:
        for number in range(first, each * in_flight, in_flight):
            await call(number)

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for first in range(in_flight):
            tasks.start_soon(worker, first)
    return each * in_flight / (time.perf_counter() - began)
