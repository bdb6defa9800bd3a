"""Models kept as files, one JSON file each, in the folder that the environment names.

`registry` loads from here, `committing` writes. A file is replaced in one step, so that a process
that dies leaves the old or the new state; the state before stays beside it, as `NAME.previous`,
whose file is the next to be written. That is why no new file, which ext4 would write out before
the step, is made for each commit. A file that cannot be read is set aside and reported.
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from moat_kv.state import errors, metrics, stored

if TYPE_CHECKING:
    from moat_kv.state.model import StateModel
    from moat_kv.state.slot import Slot

logger = logging.getLogger(__name__)

VARIABLES = ("MOAT_KV_CACHE_BASE_PATH", "MYOSIN_CACHE_BASE_PATH")
PREVIOUS = ".previous"
_AT_CWD = -100
_EXCHANGE = 2
#: What a system says that cannot exchange two files.
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


def folder() -> pathlib.Path | None:
    """Where files are kept, if the environment says."""
    for name in VARIABLES:
        text = os.environ.get(name)
        if text:
            return pathlib.Path(text)
    return None


def file_name(cls: type[StateModel], id: str | int | None) -> str:
    """`CLASS.json`, of one of several `CLASS.ID.json`."""
    if id is None:
        return f"{cls.__name__}.json"
    text = "".join(
        c if c.isalnum() or c in "-_" else f"%{b:02X}" if (b := ord(c)) < 256 else f"%u{b:04X}"
        for c in str(id)
    )
    return f"{cls.__name__}.{text}.json"


class CacheFile:
    """The file of one model. Any thread may use it."""

    def __init__(self, label: str, path: pathlib.Path, *, synced: bool) -> None:
        self.path = path
        self._label = label
        self._live, self._spare = str(path), str(path) + PREVIOUS
        self._synced = synced
        self._mutex = threading.Lock()
        self._kept: StateModel | None = None

    def keep(self, slot: Slot) -> None:
        """Write the slot's present state, unless it is there. Raises CacheError."""
        with self._mutex:
            present = slot.present  # read here: what is written later is never older
            if present is self._kept:
                return
            try:
                content = json.dumps(stored.pack(present)).encode()
            except (TypeError, ValueError) as exc:
                raise errors.CacheError(self._live, f"JSON does not carry it: {exc}") from exc
            try:
                self._write(content)
            except FileNotFoundError:
                self._make_folder()
                self._retry(content)
            except OSError as exc:
                raise errors.CacheError(self._live, exc.strerror or str(exc)) from exc
            self._kept = present

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise errors.CacheError(str(self.path.parent), exc.strerror or str(exc)) from exc

    def _retry(self, content: bytes) -> None:
        try:
            self._write(content)
        except OSError as exc:
            raise errors.CacheError(self._live, exc.strerror or str(exc)) from exc

    def _write(self, content: bytes) -> None:
        handle = os.open(self._spare, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            written = os.write(handle, content)
            while written < len(content):
                written += os.write(handle, content[written:])
            if os.fstat(handle).st_size != written:
                os.ftruncate(handle, written)
            if self._synced:
                os.fsync(handle)
        finally:
            os.close(handle)
        swap(self._spare, self._live)
        if self._synced:
            _sync_folder(self.path.parent)

    @property
    def places(self) -> list[pathlib.Path]:
        """The files that may have the state, the best first."""
        return [self.path, pathlib.Path(self._spare)]

    def clear(self) -> None:
        """Delete it, and the state before."""
        with self._mutex:
            self._kept = None
            for each in self.places:
                each.unlink(missing_ok=True)


def set_aside(path: pathlib.Path, label: str, reason: BaseException) -> pathlib.Path:
    """Rename a damaged file and report it; where it is now."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.damaged-{stamp}-{count}")
    path.rename(target)
    metrics.damaged_files.labels(label).inc()
    logger.error("%s was damaged (%s); it is %s now", path, reason, target)
    return target


def load(slot: Slot, pattern: StateModel) -> StateModel | None:
    """The kept state of a slot's model, as a model like `pattern`; None if there is none.

    Raises SchemaTooNew, and CacheError if the system does not let us read. What is no state of this
    model is set aside; the state before it is taken then, if that can be.
    """
    file = slot.file
    if file is None:
        return None
    legacy = slot.legacy_file
    for path in [*file.places, *(legacy.places[:1] if legacy else ())]:
        try:
            state, version = stored.unpack(json.loads(path.read_bytes()))
            if legacy is not None and path == legacy.path and state.get("id") != pattern.id:
                continue  # another one's
            found = stored.restored(pattern, state, version)
        except FileNotFoundError:
            continue
        except errors.SchemaTooNew:
            raise
        except OSError as exc:
            raise errors.CacheError(str(path), exc.strerror or str(exc)) from exc
        except Exception as exc:
            set_aside(path, slot.metrics_label, exc)
            continue
        if path != file.path:
            logger.warning("%s is restored from %s", slot.label, path)
        return found
    return None


# The step -----------------------------------------------------------------------------------------


def _find_exchange() -> Callable[[bytes, bytes], bool]:
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return lambda spare, live: False
    call.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint,
    ]

    def exchange(spare: bytes, live: bytes) -> bool:
        if call(_AT_CWD, spare, _AT_CWD, live, _EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code == errno.ENOENT or code in _CANNOT:
            return False
        raise OSError(code, os.strerror(code), live.decode(errors="replace"))

    return exchange


_exchange = _find_exchange()


def swap(spare: str, live: str) -> None:
    """Put `spare` in the place of `live` in one step, and `live`, if there, in that of `spare`.

    Where the system cannot exchange files, `live` is gone afterwards.
    """
    if not _exchange(os.fsencode(spare), os.fsencode(live)):
        pathlib.Path(spare).replace(live)


def _sync_folder(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
