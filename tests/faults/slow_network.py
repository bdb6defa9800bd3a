"""Slow links, and no false alarm: `python -m tests.faults.slow_network --rounds 4`.

All links, between servers and NATS nodes and among these, take 200 ms each way, and 5 % of the
chunks are held for another 0.2 to 1.2 s. Clients write meanwhile. No server may come to think that
it is cut off: that is counted in its log. In the end all trees are equal, and everything that was
answered is there. Each round lasts `--seconds`. Exit code 0 if everything was as it has to be.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time

import anyio

from tests.faults import network_box, network_writers
from tests.faults.network_box import Box

DELAY_S, HOLD_SHARE = 0.2, 0.05
SETTLE_S = 60.0
#: Of clients, in seconds: a slow link is no load test.
PAUSE_S = 0.1


async def play(
    box: Box, rounds: int, seconds: float, seed: int
) -> tuple[int, float, network_box.Verdict]:
    """So many rounds.

    How often servers thought to be cut off; how soon after that all was in order, in seconds; and
    what is there.
    """
    before = sum(box.cut_offs().values())
    await box.do(box.cluster.slow, DELAY_S, hold_share=HOLD_SHARE)
    began = time.monotonic()
    for number in range(1, rounds + 1):
        async with network_writers.writing(box, seed + 1000 * number, pause_s=PAUSE_S):
            await anyio.sleep(seconds)
        times = sum(box.cut_offs().values()) - before
        text = network_writers.counts(box, time.monotonic() - began)
        print(f"{number} rounds of {seconds:g} s: {times} times detached; {text}", flush=True)
    times = sum(box.cut_offs().values()) - before
    await box.do(box.cluster.slow)
    settled_s = await network_box.settle(box, SETTLE_S)
    return times, settled_s, await network_box.look(box, network_writers.PLACES)


async def run(folder: pathlib.Path, rounds: int, seconds: float, seed: int) -> int:
    """The exit code."""
    async with network_box.box(folder) as box:
        times, settled_s, verdict = await play(box, rounds, seconds, seed)
    print(f"{times} times detached; {verdict}; in order {settled_s:.1f} s afterwards")
    for line in verdict.details():
        print(line)
    return 0 if verdict.is_fine and not times and settled_s < SETTLE_S else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.rounds, options.seconds, options.seed)


if __name__ == "__main__":
    sys.exit(main())
