"""Many entries: loading them, what they take in memory, reading them all, starting with them."""

from __future__ import annotations

import pathlib
import sqlite3
import time
from contextlib import closing

import anyio

from benchmarks import bare, calls, echo, entries, outcome, peers, rounds, stage
from benchmarks.stage import ECHO, OURS, SQLITE
from moat_kv import codec
from moat_kv.engine import sqlite_rows

#: Rows in one part of the echo's answer, as in ours.
PART_ROWS = 500
#: Loads of less than this many entries are repeated until they have this many together.
REPEAT_UP_TO = 200_000
#: How many entries the aims, and what is known of the original, are about.
KNOWN_LOAD = 100_000
#: At most so many rounds of what takes long.
LONG_ROUNDS = 3


async def load(place: peers.Place) -> list[outcome.Figure]:
    """Entries loaded through `batch` into a new server, and the memory that each takes."""
    figures = []
    for count in place.scale.loads:
        times = min(place.scale.rounds, LONG_ROUNDS, max(1, REPEAT_UP_TO // count))
        figures += await _load(place, count, times)
    return figures


async def _load(place: peers.Place, count: int, times: int) -> list[outcome.Figure]:
    series = rounds.Series({OURS: [], ECHO: [], SQLITE: []})
    sizes = []
    async with place.echo() as plain:
        for _ in range(times):
            seconds, size_bytes = await _load_ours(place, count)
            series[OURS].append(seconds)
            sizes.append(size_bytes)
            series[ECHO].append(await _load_echo(plain, count))
            series[SQLITE].append(_load_bare(place, count))
    time_aim = outcome.Aim(text="at most 3 s", value=series.median(OURS), limit=3.0, unit="s")
    size_aim = outcome.Aim(
        text="at most 600 bytes", value=rounds.median(sizes), limit=600, unit="B"
    )
    known = count == KNOWN_LOAD
    return [
        calls.figure(
            f"load of {count:,} entries",
            "s",
            series,
            original=113.0 if known else None,
            aim=time_aim if known else None,
            note=f"batches of {stage.BATCH:,}, {stage.LOADERS} under way",
        ),
        outcome.Figure(
            what=f"memory of an entry, of {count:,}",
            unit="B",
            ours=rounds.median(sizes),
            original=1600 if known else None,
            aim=size_aim,
            note="growth of the server's resident memory",
        ),
    ]


async def _load_ours(place: peers.Place, count: int) -> tuple[float, float]:
    """Seconds for all, and bytes of memory for each."""
    with place.server() as server:
        async with server.client() as client:
            before = server.memory_bytes()
            began = time.perf_counter()
            await stage.load(client, count)
            seconds = time.perf_counter() - began
            size_bytes = (server.memory_bytes() - before) / count
    place.filled[count] = server.data
    return seconds, size_bytes


async def _load_echo(plain: echo.EchoClient, count: int) -> float:
    """The same batches, as far as an echo can take them."""
    starts = iter(range(0, count, stage.BATCH))

    async def loader() -> None:
        for start in starts:
            numbers = range(start, min(start + stage.BATCH, count))
            writes = [
                [entries.path(number).packed, codec.pack(entries.VALUE), {}] for number in numbers
            ]
            await plain.call("batch", {"writes": writes}, None)

    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(stage.LOADERS):
            tasks.start_soon(loader)
    return time.perf_counter() - began


def _load_bare(place: peers.Place, count: int) -> float:
    with closing(bare.BareLog(place.new("bare"))) as log:
        seconds = 0.0
        for start in range(0, count, stage.BATCH):
            seconds += log.commit(log.rows(min(stage.BATCH, count - start)))
    return seconds


async def tree(place: peers.Place) -> list[outcome.Figure]:
    """All entries below a path, with `get_tree`."""
    count = place.scale.tree
    with place.server(data=await _filled(place, count)) as server:
        async with server.client() as client, place.echo() as plain:

            async def ours() -> float:
                began = time.perf_counter()
                found = 0
                async for _ in client.get_tree(entries.BASE):
                    found += 1
                if found != count:
                    raise RuntimeError(f"get_tree gave {found} entries of {count}")
                return time.perf_counter() - began

            with closing(bare.BareLog(place.new("bare"))) as log:
                log.commit(log.rows(count))
                series = await rounds.alternate(
                    {
                        OURS: ours,
                        ECHO: lambda: _read_echo(plain, count),
                        SQLITE: lambda: _read_bare(log),
                    },
                    min(place.scale.rounds, LONG_ROUNDS),
                )
    known = count == KNOWN_LOAD
    note = "the echo takes the rows there, too"
    return [
        calls.figure(
            f"get_tree of {count:,} entries",
            "s",
            series,
            original=53.0 if known else None,
            note=note,
        )
    ]


async def _read_echo(plain: echo.EchoClient, count: int) -> float:
    """As many rows of the same content, there and back, and their values decoded."""
    began = time.perf_counter()
    for start in range(0, count, PART_ROWS):
        numbers = range(start, min(start + PART_ROWS, count))
        rows = [
            [entries.path(number).packed, entries.PACKED, number, began, "bench:00000000:1"]
            for number in numbers
        ]
        answer = await plain.call("get_tree", {"rows": rows}, None)
        for row in answer[2]["rows"]:
            codec.unpack(row[1])
    return time.perf_counter() - began


async def _read_bare(log: bare.BareLog) -> float:
    began = time.perf_counter()
    log.read()
    return time.perf_counter() - began


async def start(place: peers.Place) -> list[outcome.Figure]:
    """From the start of the process until it can be used."""
    count = place.scale.start
    data = await _filled(place, count)

    async def full() -> float:
        with place.server(data=data) as server:
            return server.started_in_s

    async def empty() -> float:
        with place.server() as server:
            return server.started_in_s

    async def plain() -> float:
        began = time.perf_counter()
        async with place.echo():
            return time.perf_counter() - began

    series = await rounds.alternate(
        {OURS: full, "empty": empty, ECHO: plain, SQLITE: lambda: _read_file(data)},
        min(place.scale.rounds, LONG_ROUNDS),
    )
    note = f"from an empty file {series.median('empty'):.2f} s; SQLite: reads and checks all rows"
    series = series.without("empty")
    return [calls.figure(f"start from a file of {count:,} entries", "s", series, note=note)]


async def _read_file(data: pathlib.Path) -> float:
    began = time.perf_counter()
    with closing(sqlite3.connect(data / "tree.sqlite")) as connection:
        for row in connection.execute("SELECT * FROM log ORDER BY rev"):
            sqlite_rows.record_of(row)
    return time.perf_counter() - began


async def _filled(place: peers.Place, count: int) -> pathlib.Path:
    """The folder of a server that has so many entries and does not run any more."""
    if count not in place.filled:
        await _load_ours(place, count)
    return place.filled[count]
