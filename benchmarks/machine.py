"""The facts of a machine that figures depend on; no names and no dates."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shutil
import sqlite3
import statistics
import subprocess
import time
from typing import Any

from benchmarks import echo

#: How many writes are synced to find out what one takes.
_SYNCS = 200


def facts(folder: pathlib.Path) -> dict[str, Any]:
    """`cpu`, `cores`, `memory_bytes`, `system`, `python`, `sqlite`, `loop`, `msgpack`, `redis`,
    `fsync_s` (the median time to sync 4 KiB more of a file in the folder).
    """
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    loop = f"uvloop {importlib.metadata.version('uvloop')}" if echo.has_uvloop() else "asyncio"
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": pages,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "loop": loop,
        "msgpack": importlib.metadata.version("msgpack"),
        "redis": _redis(),
        "fsync_s": _fsync_s(folder),
    }


def _cpu() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.machine())


def _redis() -> str | None:
    program = shutil.which("redis-server")
    if program is None:
        return None
    done = subprocess.run([program, "--version"], capture_output=True, check=True, text=True)
    words = done.stdout.split()
    return next((word.removeprefix("v=") for word in words if word.startswith("v=")), "?")


def _fsync_s(folder: pathlib.Path) -> float:
    file = folder / "sync"
    times = []
    with file.open("wb", buffering=0) as stream:
        for _ in range(_SYNCS):
            stream.write(bytes(4096))
            began = time.perf_counter()
            os.fsync(stream.fileno())
            times.append(time.perf_counter() - began)
    file.unlink()
    return statistics.median(times)
