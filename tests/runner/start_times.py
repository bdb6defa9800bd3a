"""How long it takes from a job's due time to the first line of its script, on an idle runner.

`python -m tests.runner.start_times [RUNS]` prints a line for each kind of script, inline and in a
child. The server is in the same process and keeps its tree in memory.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile

import anyio

from tests.runner.bench import GROUP, bench

SCRIPT = "import time\nreturn time.time()"
KINDS = {"async": True, "quick": None, "thread": False}
#: The first ones find nothing warm.
WARM_UP = 3
AHEAD_S = 0.2


async def measure(isolate: str, kind: str, runs: int) -> str:
    """A line of figures, in milliseconds."""
    late_ms = []
    async with bench("n1", isolate=isolate) as b:
        await b.store("code.timed", SCRIPT, is_async=KINDS[kind])
        for number in range(runs + WARM_UP):
            path = f"job.n{number}"
            place = await b.job(code=b.code.entry("code.timed").path, path=path, target=AHEAD_S)
            due = (await b.desk.get(place)).value["target"]
            late_ms.append(((await b.state(path=path)).result - due) * 1000)
    late_ms = sorted(late_ms[WARM_UP:])
    p50, p95 = statistics.median(late_ms), late_ms[int(len(late_ms) * 0.95)]
    return f"{isolate:8} {kind:7} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms   max {late_ms[-1]:6.1f} ms"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    print(f"{runs} starts each, group {GROUP}; from due to the script's first line")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_STATE_HOME"] = folder  # for what the runs leave
        for isolate in ("inline", "process"):
            for kind in KINDS:
                print(anyio.run(measure, isolate, kind, runs), flush=True)


if __name__ == "__main__":
    main()
