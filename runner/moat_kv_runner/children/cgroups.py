"""A control group for each child, where the system lets a runner make some (version 2).

A member cannot leave it, whatever it forks, so the whole group is killed at once; and where memory
and number of processes can be limited for a group, they are, for all of it together. A service of
systemd has this with `Delegate=yes`. Where it cannot be had, the keeper alone holds a child.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets

from moat_kv_runner.children import limits, processes

_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
PREFIX = "moat-kv-"


def own_folder() -> pathlib.Path | None:
    """Where this process's group is, if groups can be made below it."""
    try:
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    place = next((line[3:] for line in lines if line.startswith("0::")), None)
    if place is None:
        return None
    for root in _ROOTS:
        folder = pathlib.Path(root + place)
        if (folder / "cgroup.kill").exists() and os.access(folder, os.W_OK):
            return folder
        # The root group has no `cgroup.kill` of its own.
        if (folder / "cgroup.subtree_control").exists() and os.access(folder, os.W_OK):
            return folder
    return None


def usable_folder() -> pathlib.Path | None:
    """The same, after a group was made there and removed again."""
    folder = own_folder()
    if folder is None:
        return None
    try:
        made = Cgroup.make(folder, limits.Limits())
    except OSError:
        return None
    is_usable = (made.folder / "cgroup.kill").exists()
    made.remove()
    return folder if is_usable else None


def limits_memory(folder: pathlib.Path) -> bool:
    """Whether groups below this one can be given a limit of memory."""
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


class Cgroup:
    """One child's group; made by its keeper, which is not in it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._members = str(folder / "cgroup.procs")

    @classmethod
    def make(cls, below: pathlib.Path, allowed: limits.Limits) -> Cgroup:
        """Raises OSError."""
        folder = below / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        made = cls(folder)
        # There only where these are handed down.
        if allowed.processes and (folder / "pids.max").exists():
            made._write("pids.max", str(allowed.processes))
        if allowed.memory_mb and (folder / "memory.max").exists():
            made._write("memory.max", str(int(allowed.memory_mb * 1024 * 1024)))
        return made

    def add(self, pid: int) -> None:
        """Have a process in it, with all that it will fork; takes some 10 ms. Raises OSError."""
        self._write("cgroup.procs", str(pid))

    def members(self) -> set[int]:
        return set(processes.numbers_in(self._members))

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._write("cgroup.kill", "1")

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
