"""The surroundings of a tour: folders of its own, a free port, and nothing left running afterwards.

`__main__` makes and clears them. Touches nothing of the user's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

GO_S = 5.0  # for what outlives its terminal to end by itself
GONE_S = 20.0  # what was killed has gone by then
_MARKER = "MOAT_KV_TOUR"  # in the environment of all that the tour starts


def environment(home: Path, marker: str) -> dict[str, str]:
    """What a command sees: this Python's commands first, a home of its own, nobody's settings."""
    folders = {
        "HOME": home,
        "XDG_CONFIG_HOME": home / ".config",
        "XDG_CACHE_HOME": home / ".cache",
        "XDG_DATA_HOME": home / ".local/share",
        "XDG_STATE_HOME": home / ".local/state",
        "XDG_RUNTIME_DIR": home / "run",
        "TMPDIR": home / "tmp",
    }
    for folder in folders.values():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        **{name: os.environ[name] for name in ("TZ", "USER", "LOGNAME") if name in os.environ},
        **{name: str(folder) for name, folder in folders.items()},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "SHELL": "bash",
        _MARKER: marker,
    }


def link_all(source: Path, target: Path) -> None:
    """Show everything in `source` in the new folder `target`, where new files do no harm."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.name not in {".git", ".dev.lock"}:
            (target / entry.name).symlink_to(entry)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def end_left_running(marker: str, *, limit_s: float) -> list[str]:
    """End what outlived its terminal, wherever it went; their names. Needs /proc, else finds none.

    `limit_s`: how long they may take to end by themselves, unreported.
    """
    deadline = time.monotonic() + limit_s
    while (left := _left_running(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    problems = []
    for pid in left:
        with contextlib.suppress(OSError):  # it has gone in the meantime
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            os.kill(pid, signal.SIGKILL)
            problems.append(f"outlived its terminal: {command.decode(errors='replace').strip()}")
    # What is killed takes a moment to go.
    deadline = time.monotonic() + GONE_S
    while problems and _left_running(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    return problems


def _left_running(marker: str) -> list[int]:
    entry = f"{_MARKER}={marker}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or somebody else's
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
