"""What the system says of a file, for a person: what is wrong, where, what would be right.

Used by the modules of the embedded engine, and by commands that write files. Pure but for looking
which part of a path is there.
"""

from __future__ import annotations

import errno
import os
import pathlib

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is mounted read-only",
    errno.EISDIR: "that is a folder, and has to be a file",
    errno.EMFILE: "the process has too many files open",
    errno.ENFILE: "the system has too many files open",
}


def reason_of(exc: OSError, file: pathlib.Path) -> str:
    """Why `file` could not be opened, made or written. It is not named again; other places are."""
    number = exc.errno
    if number in _REASONS:
        return _REASONS[number]
    place = pathlib.Path(os.fsdecode(exc.filename)) if exc.filename else file
    if number in (errno.EACCES, errno.EPERM):
        return f"no permission; {_who()} has to be allowed to write {_part(place, file)}"
    there = next((each for each in (place, *place.parents) if os.path.lexists(each)), place)
    if number in (errno.ENOTDIR, errno.EEXIST) and not there.is_dir():
        return f"{there} is no folder, and has to be one"
    if number == errno.ENOENT and there != place:
        return f"there is no folder {there / place.relative_to(there).parts[0]}"
    reason = (exc.strerror or str(exc) or type(exc).__name__).lower()
    return reason if place == file else f"{reason} ({place})"


def _who() -> str:
    return f"user {os.geteuid()}" if os.geteuid() else "this process"


def _part(place: pathlib.Path, file: pathlib.Path) -> str:
    """What of it has to be writable: the file that is there, or the folder that is to hold it."""
    if place.is_file():
        return "it" if place == file else str(place)
    folders = [each for each in place.parents if os.access(each, os.X_OK) and each.is_dir()]
    return f"in {folders[0]}" if folders else f"in {place.parent}"
