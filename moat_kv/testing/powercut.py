"""A disk that can lose power, run full, and fail to sync, below a real SQLite engine.

For tests of durability: `SimulatedDisk.connect` goes where `SqliteEngine` takes its `connect`.
SQLite then runs on a file system layer (VFS) of ours, which keeps for each file what was synced
apart from what was only written. After `cut` nothing more reaches the disk, and `restore` leaves
the real files as a machine would find them that starts again. Needs apsw; knows nothing of engines.

What is simulated is the worst that POSIX allows: without a sync nothing written needs to be there,
in no order; a file that was made is there after its first sync, one that was removed may be back;
and what was written before a sync that failed never reaches the disk by a later sync, unless it is
written again (Linux reports such a failure once).
"""

from __future__ import annotations

import itertools
import pathlib
import random
from dataclasses import dataclass, field
from typing import NamedTuple

import apsw

#: What a disk writes as a whole, or not at all.
SECTOR_BYTES = 512

_serial = itertools.count()


class _Change(NamedTuple):
    """Written at an offset; without data: truncated to it."""

    offset: int
    data: bytes | None


@dataclass(kw_only=True)
class _Image:
    """A file as the disk has it."""

    durable: bytearray | None
    """What was synced; None: no such file."""
    pending: list[_Change] = field(default_factory=list)
    touched: bool = False

    def sync(self) -> None:
        content = bytearray() if self.durable is None else self.durable
        for change in self.pending:
            _apply(content, change)
        self.durable = content
        self.pending.clear()


def _apply(content: bytearray, change: _Change) -> None:
    if change.data is None:
        del content[change.offset :]
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


class SimulatedDisk:
    """One disk. Use it as a context manager; connections must be closed before it is left.

    `survival` is the chance (0 to 1) of each sector that was written but not synced to be there
    after a power cut all the same, by itself.
    """

    def __init__(self, *, seed: int = 0, survival: float = 0.0) -> None:
        self._chance = random.Random(seed)
        self._survival = survival
        self._images: dict[str, _Image] = {}
        self._until_cut: int | None = None
        self._after_cut: dict[str, bytes | None] | None = None
        self._vfs = _Vfs(f"moat-kv-disk-{next(_serial)}", self)
        #: By how many bytes files may still grow; None: without limit.
        self.room_bytes: int | None = None
        #: So many syncs fail from now on.
        self.failing_syncs = 0
        #: Every operation fails, as if the process had died: what is in the system's cache stays
        #: there for the next process, which begins when this is False again.
        self.stopped = False
        #: How often anything was written, synced or removed.
        self.operations = 0

    def __enter__(self) -> SimulatedDisk:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._vfs.unregister()

    def connect(self, path: str) -> apsw.Connection:
        """Open a database on this disk."""
        return apsw.Connection(path, vfs=self._vfs.name)

    @property
    def has_power(self) -> bool:
        return self._after_cut is None

    def cut_after(self, operations: int) -> None:
        """Cut the power when so many more operations have been carried out."""
        self._until_cut = operations

    def cut(self) -> None:
        """Cut the power now: from here on every operation fails."""
        if self._after_cut is None:
            self._after_cut = {
                name: self._surviving(image)
                for name, image in self._images.items()
                if image.touched
            }

    def rewritten(self, path: pathlib.Path) -> None:
        """All of a file was written and synced, by other means than through this disk."""
        self.operate()
        self.opened(str(path))
        self.changed(str(path), 0, None)
        self.changed(str(path), 0, path.read_bytes())
        self.synced(str(path))

    def restore(self) -> None:
        """Leave the real files as they are found after the power cut; then power is back."""
        if self._after_cut is None:
            raise RuntimeError("the power has not been cut")
        for name, content in self._after_cut.items():
            if content is None:
                pathlib.Path(name).unlink(missing_ok=True)
            else:
                pathlib.Path(name).write_bytes(content)
        self._images.clear()
        self._after_cut = None
        self._until_cut = None

    def _surviving(self, image: _Image) -> bytes | None:
        if image.durable is None and self._chance.random() >= self._survival:
            return None
        content = bytearray(image.durable or b"")
        for change in image.pending:
            if change.data is None:
                if self._chance.random() < self._survival:
                    _apply(content, change)
                continue
            for start in range(0, len(change.data), SECTOR_BYTES):
                if self._chance.random() < self._survival:
                    part = change.data[start : start + SECTOR_BYTES]
                    _apply(content, _Change(change.offset + start, part))
        return bytes(content)

    # What the file system layer asks and tells

    def opened(self, name: str) -> None:
        """A file is about to be opened, or made."""
        place = pathlib.Path(name)
        image = self._images.get(name)
        if image is None:
            content = bytearray(place.read_bytes()) if place.exists() else None
            self._images[name] = _Image(durable=content)
        elif not place.exists():
            # A new file in the place of one that was removed: its first sync replaces that one.
            image.pending = [_Change(0, None)]

    def operate(self) -> None:
        """An operation is about to be carried out; raises if the power is gone."""
        self.operations += 1
        if self._until_cut is not None:
            if self._until_cut <= 0:
                self.cut()
            self._until_cut -= 1
        if self._after_cut is not None or self.stopped:
            raise _failure(apsw.SQLITE_IOERR)

    def changed(self, name: str, offset: int, data: bytes | None) -> None:
        image = self._images[name]
        image.pending.append(_Change(offset, data))
        image.touched = True

    def grow(self, size_bytes: int) -> None:
        """Take room for a file that grows. Raises if there is not enough."""
        if self.room_bytes is not None and size_bytes > 0:
            if size_bytes > self.room_bytes:
                raise _failure(apsw.SQLITE_FULL)
            self.room_bytes -= size_bytes

    def synced(self, name: str) -> None:
        if self.failing_syncs > 0:
            self.failing_syncs -= 1
            self._images[name].pending.clear()
            raise _failure(apsw.SQLITE_IOERR_FSYNC)
        self._images[name].sync()

    def removed(self, name: str, *, for_good: bool) -> None:
        """`for_good`: its folder was synced too; otherwise it is back after a power cut."""
        image = self._images.get(name)
        if image is not None:
            image.pending.clear()
            image.touched = True
            if for_good:
                image.durable = None


def _failure(code: int) -> Exception:
    failure: Exception = apsw.exception_for(code)
    return failure


class _Vfs(apsw.VFS):
    """Passes everything on to the system's own layer, and tells the disk."""

    def __init__(self, name: str, disk: SimulatedDisk) -> None:
        self.name = name
        self._disk = disk
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:  # a temporary file, which nobody misses
            return apsw.VFSFile("", name, flags)
        text = name if isinstance(name, str) else name.filename()
        self._disk.opened(text)
        return _File(text, name, flags, self._disk)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self._disk.operate()
        super().xDelete(filename, syncdir)
        self._disk.removed(filename, for_good=syncdir)


class _File(apsw.VFSFile):
    def __init__(
        self, name: str, given: str | apsw.URIFilename, flags: list[int], disk: SimulatedDisk
    ) -> None:
        self._name = name
        self._disk = disk
        super().__init__("", given, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.operate()
        self._disk.grow(offset + len(data) - super().xFileSize())
        super().xWrite(data, offset)
        self._disk.changed(self._name, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:
        self._disk.operate()
        super().xTruncate(newsize)
        self._disk.changed(self._name, newsize, None)

    def xSync(self, flags: int) -> None:
        self._disk.operate()
        self._disk.synced(self._name)
