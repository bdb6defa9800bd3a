"""kill -9 of servers and NATS nodes under writing: `python -m tests.faults.kill_network`.

Three NATS nodes and three servers, each with clients that write without pause: plain sets and
deletions of their own keys, sets of keys that all of them share, compare-and-sets. Now and then a
server is killed and started again, or a NATS node, the stream's leader included. In the end, when
all are back and no write waits, every write that was answered must be there, or a later one that
was sent, or it must be among the conflicts; and all servers must have the same tree, byte for byte.

Exit code 0 if everything was as it has to be, else 1.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence

import anyio

from tests.faults import network_box, network_writers
from tests.faults.network_box import Box


async def play(
    box: Box, kills: int, node_kills: int, seed: int, pause_s: float
) -> tuple[float, network_box.Verdict]:
    """So many kills of each kind in any order; how soon all was in order, in seconds, and what is
    there.
    """
    chance = random.Random(seed)
    faults = ["server"] * kills + ["node"] * node_kills
    chance.shuffle(faults)
    async with network_writers.writing(box, seed, pause_s=pause_s):
        began = time.monotonic()
        leaders = 0
        for done, kind in enumerate(faults, 1):
            leaders += await _kill(box, kind, chance)
            if done % 10 == 0 or done == len(faults):
                text = network_writers.counts(box, time.monotonic() - began)
                print(f"{_kills(faults[:done], leaders)}: {text}", flush=True)
    settled_s = await network_box.settle(box)
    return settled_s, await network_box.look(box, network_writers.PLACES)


async def run(folder: pathlib.Path, kills: int, node_kills: int, seed: int) -> int:
    """The exit code."""
    async with network_box.box(folder) as box:
        settled_s, verdict = await play(box, kills, node_kills, seed, network_writers.PAUSE_S)
    print(f"{verdict}; in order {settled_s:.1f} s after the last fault", flush=True)
    for line in verdict.details():
        print(line)
    return 0 if verdict.is_fine and settled_s < network_box.SETTLE_S else 1


async def _kill(box: Box, kind: str, chance: random.Random) -> bool:
    """Kill one and start it again; whether it led the stream."""
    await anyio.sleep(chance.uniform(0.2, 1.0))
    if kind == "server":
        await box.restart(chance.choice(box.servers), chance.uniform(0, 0.5))
        return False
    leader = await box.do(box.cluster.leader)
    node = chance.choice(box.nodes)
    await box.restart(node, chance.uniform(0, 2.0))
    return node == leader


def _kills(faults: Sequence[str], leaders: int) -> str:
    servers, nodes = faults.count("server"), faults.count("node")
    return f"{servers} kills of servers, {nodes} of NATS nodes ({leaders} led)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=100, help="so many kills of servers")
    parser.add_argument("--nodes", type=int, default=30, help="so many kills of NATS nodes")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(run, pathlib.Path(folder), options.servers, options.nodes, options.seed)


if __name__ == "__main__":
    sys.exit(main())
