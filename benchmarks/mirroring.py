"""Reading from a mirror."""

from __future__ import annotations

import time

from benchmarks import calls, entries, outcome, peers, rounds, stage
from benchmarks.stage import ECHO, OURS
from moat_kv.client import mirror as client_mirror
from moat_kv.path import Path


async def mirror(place: peers.Place) -> list[outcome.Figure]:
    """A read of one value."""
    reads = place.scale.mirror_reads
    async with stage.set_up(place) as on, on.client.mirror(entries.BASE) as root:
        relative = [path[len(entries.BASE) :] for path in on.paths]
        plain = dict.fromkeys(on.paths, entries.VALUE)

        async def from_mirror() -> float:
            return _time_of_each(root, relative, reads)

        async def from_dict() -> float:
            began = time.perf_counter()
            for number in range(reads):
                plain[on.paths[number % len(on.paths)]]
            return (time.perf_counter() - began) / reads

        series = await rounds.alternate(
            {
                OURS: from_mirror,
                "dict": from_dict,
                ECHO: lambda: rounds.round_trip(on.echo_call, place.scale.calls),
            },
            place.scale.rounds,
        )
    note = f"from a plain dictionary of paths {series.median('dict') * 1e6:.2f} µs"
    series = series.without("dict")
    return [calls.figure("read from a mirror", "s", series, note=note)]


def _time_of_each(root: client_mirror.ClientRoot, paths: list[Path], reads: int) -> float:
    began = time.perf_counter()
    for number in range(reads):
        root[paths[number % len(paths)]].value  # noqa: B018  # reading it is what is measured
    return (time.perf_counter() - began) / reads
