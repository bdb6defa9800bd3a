"""The hand that keeps what runs print and how they end: a queue, and one thread that writes.

One for each `serving.Service`. Whoever runs a script says so with `begin` and gives what comes of
it to the `sink.RunSink` that it gets; none of this waits for a disk, and a disk that is full, slow
or gone loses lines, which is said once, and harms nothing else. Files are touched in the thread
alone, so what is asked there (`ask`) has seen everything that was given before.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import functools
import logging
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from moat_kv import config
from moat_kv.path import Path
from moat_kv_runner.kept import files, sink

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Lines of one job, in bytes; fewer if there are so many jobs that all of them would be more than
#: the settings allow.
JOB_BYTES = 1024 * 1024
#: What may wait for the disk, in bytes; above that lines are lost.
WAITING_BYTES = 4 * 1024 * 1024
#: What a line costs beside its text, in bytes.
_LINE_COST = 200
#: Nothing is written where less than that is free, in bytes, and as a part of the whole.
FREE_BYTES = 32 * 1024 * 1024
FREE_PART = 0.02
#: Lines are collected for so long, in seconds, so that many are written at once.
COLLECT_S = 0.05
#: How long the thread may take at the end, and for an answer, in seconds.
CLOSE_S = 2.0
ANSWER_S = 4.0


class _Line(NamedTuple):
    at: float
    stream: str
    level: int | None
    text: str


class NotKept(Exception):
    """The folder cannot be used; says why."""


class Recorder:
    """See above. `name` and `group` are the runner's; `kinds` of jobs have a folder each."""

    def __init__(self, settings: config.RunnerConfig, *, name: str, group: Path) -> None:
        self._base = settings.logs
        self._whose = (files.name_of(name), files.name_of(str(group)))
        self._total_bytes = int(settings.logs_mb * 1024 * 1024)
        self._runs = settings.logs_runs
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._limiter = anyio.CapacityLimiter(4)
        # In the thread: what is known of folders and files, and lines that are to be written.
        self._kinds: dict[str, pathlib.Path] = {}
        self._locks: list[int] = []
        self._jobs: dict[tuple[str, str], files.JobFiles] = {}
        self._count = 0
        self._lines: dict[sink.RunSink, list[_Line]] = {}
        # The names of all jobs of kinds of which those that are gone were not looked for yet.
        self._owed: dict[str, Collection[str]] = {}
        # The runs that go on, by job.
        self._begun: dict[tuple[str, Path], sink.RunSink] = {}
        # What was said of a folder that cannot be written.
        self._trouble: str | None = None

    @property
    def is_on(self) -> bool:
        return self._total_bytes > 0

    # For whoever runs scripts, on the event loop ------------------------------------------------

    def begin(self, kind: str, path: Path, facts: Mapping[str, Any]) -> sink.RunSink:
        """A run of a job begins; `facts` are kept beside it: `started`, `node`, `fence`."""
        made = sink.RunSink(self, kind, path, facts)
        self._give(functools.partial(self._begin, made))
        return made

    def line(self, run: sink.RunSink, stream: str, level: int | None, text: str) -> None:
        """A line of a run; it is lost if too much waits for the disk. From any thread."""
        cost = len(text) + _LINE_COST
        with self._lock:
            if self._waiting_bytes + cost > WAITING_BYTES:
                run.lost += 1
                return
            self._waiting_bytes += cost
        line = _Line(time.time(), stream, level, text)
        self._give(functools.partial(self._take_line, run, line, cost))

    def end(self, run: sink.RunSink, facts: Mapping[str, Any]) -> None:
        """A run is over."""
        self._give(functools.partial(self._end, run, dict(facts)))

    def forget(self, kind: str, path: Path) -> None:
        """The job is gone, and what its runs have left goes with it."""
        self._give(functools.partial(self._forget, kind, path))

    def keep_only(self, kind: str, paths: Collection[Path]) -> None:
        """These are all the jobs that there are of a kind."""
        names = {files.name_of(str(path)) for path in paths}
        self._give(functools.partial(self._keep_only, kind, names))

    async def ask(self, kind: str, path: Path, call: Callable[[files.JobFiles], _T]) -> _T:
        """What `call` makes of a job's files. Raises NotKept, OSError, and TimeoutError."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def work() -> None:
            try:
                self._write_lines()
                future.set_result(call(self._files(kind, path)))
            except Exception as exc:
                future.set_exception(exc)

        if not self.is_on:
            raise NotKept("the runner's settings say that nothing is to be kept: runner.logs_mb")
        self._give(work)
        self._hurry.set()
        wait = functools.partial(future.result, ANSWER_S)
        return await anyio.to_thread.run_sync(wait, limiter=self._limiter, abandon_on_cancel=True)

    def close(self) -> None:
        """Write what waits, and leave the folder to others; may take `CLOSE_S`."""
        with self._lock:
            self._is_closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._hurry.set()
            self._thread.join(CLOSE_S)

    def _give(self, work: Callable[[], None]) -> None:
        with self._lock:
            if not self.is_on or self._is_closed:
                return
            self._queue.put(work)
            if self._thread is None:
                name = "moat-kept-runs"
                self._thread = threading.Thread(target=self._live, name=name, daemon=True)
                self._thread.start()

    # In the thread ------------------------------------------------------------------------------

    def _live(self) -> None:
        try:
            while True:
                work = self._queue.get()
                self._hurry.wait(COLLECT_S)
                self._hurry.clear()
                while work is not None:
                    self._do(work)
                    try:
                        work = self._queue.get_nowait()
                    except queue.Empty:
                        break
                else:
                    return
                self._do(self._write_lines)
        finally:
            self._do(self._write_lines)
            self._leave()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, NotKept) as exc:
            self._tell(str(exc))
        except Exception:
            logger.exception("what a run has left is not kept: a fault of the runner")

    def _tell(self, trouble: str) -> None:
        """Once, until it is over."""
        if self._trouble is None:
            logger.warning("what runs print is not kept now: %s", trouble)
        self._trouble = trouble

    def _tell_well(self) -> None:
        if self._trouble is not None:
            self._trouble = None
            logger.warning("what runs print is kept again")

    def _begin(self, run: sink.RunSink) -> None:
        self._write_lines()
        self._begun[run.kind, run.path] = run
        self._note_begin(run)

    def _note_begin(self, run: sink.RunSink) -> files.JobFiles:
        job = self._files(run.kind, run.path)
        self._check_room(job.folder)
        if not run.number:
            run.number = job.begin(run.facts)
        return job

    def _end(self, run: sink.RunSink, facts: dict[str, Any]) -> None:
        self._write_lines()
        if self._begun.get((run.kind, run.path)) is run:
            del self._begun[run.kind, run.path]
        if not run.is_forgotten:
            self._note_begin(run).note_runs([{**run.facts, **facts, "run": run.number}])

    def _take_line(self, run: sink.RunSink, line: _Line, cost: int) -> None:
        with self._lock:
            self._waiting_bytes -= cost
        if not run.is_forgotten:
            self._lines.setdefault(run, []).append(line)

    def _write_lines(self) -> None:
        waiting, self._lines = self._lines, {}
        for run, lines in waiting.items():
            self._do(functools.partial(self._write, run, lines))

    def _write(self, run: sink.RunSink, lines: list[_Line]) -> None:
        with self._lock:
            lost, run.lost = run.lost, 0
        if lost:
            text = f"{lost} lines were lost: {self._trouble or 'too many at once'}"
            lines = [lines[0]._replace(stream="log", level=logging.WARNING, text=text), *lines]
        try:
            job = self._note_begin(run)
            packed = [files.packed_line(run=run.number, **each._asdict()) for each in lines]
            job.append(packed, self._limit_bytes())
        except (OSError, NotKept):
            with self._lock:
                run.lost += lost + len(lines) - bool(lost)
            raise
        self._tell_well()

    def _forget(self, kind: str, path: Path) -> None:
        run = self._begun.pop((kind, path), None)
        if run is not None:
            run.is_forgotten = True
            self._lines.pop(run, None)
        self._files(kind, path).remove()
        if self._jobs.pop((kind, files.name_of(str(path))), None) is not None:
            self._count -= 1

    def _keep_only(self, kind: str, names: Collection[str]) -> None:
        self._owed[kind] = names
        place = self._folder(kind)
        if self._owed.pop(kind, None) is None:
            return  # done when the folder was had
        for folder in list(files.folders(place)):
            if folder.name not in names:
                self._job(kind, folder.name).remove()
                del self._jobs[kind, folder.name]
        kept = list(files.folders(place))
        self._count = sum(len(list(files.folders(each))) for each in self._kinds.values())
        for folder in kept:
            self._job(kind, folder.name).trim(self._limit_bytes())

    def _limit_bytes(self) -> int:
        return min(JOB_BYTES, self._total_bytes // max(1, self._count))

    # Folders ------------------------------------------------------------------------------------

    def _files(self, kind: str, path: Path) -> files.JobFiles:
        self._folder(kind)
        return self._job(kind, files.name_of(str(path)))

    def _job(self, kind: str, name: str) -> files.JobFiles:
        found = self._jobs.get((kind, name))
        if found is None:
            folder = self._kinds[kind] / name
            found = self._jobs[kind, name] = files.JobFiles(folder, runs=self._runs)
            self._count += not folder.exists()
        return found

    def _folder(self, kind: str) -> pathlib.Path:
        """The folder of a kind of jobs, which is this runner's alone. Raises NotKept, OSError."""
        found = self._kinds.get(kind)
        if found is not None:
            return found
        base = pathlib.Path(self._base).expanduser() if self._base else config.default_logs()
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = base.joinpath(*self._whose, kind)
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            hint = "say runner.logs in the settings of one of them"
            raise NotKept(f"another runner uses {place}; {hint}") from None
        except OSError:
            os.close(lock)
            raise
        self._locks.append(lock)
        self._kinds[kind] = place
        self._count += len(list(files.folders(place)))
        if kind in self._owed:
            self._keep_only(kind, self._owed[kind])
        return place

    def _check_room(self, place: pathlib.Path) -> None:
        """Raises NotKept before the disk is full."""
        while not place.exists():
            place = place.parent
        found = os.statvfs(place)
        free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        least = min(FREE_BYTES, int(whole * FREE_PART))
        if free < least:
            raise NotKept(f"less than {least // 1024} KiB are free at {place}")

    def _leave(self) -> None:
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
        self._kinds.clear()
        self._jobs.clear()
