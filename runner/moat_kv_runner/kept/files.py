"""One job's folder: the last lines of its runs, and the last runs. Synchronous.

Only the thread of a `recorder` works here. Lines are in segments, `lines-1`, `lines-2`, ..., of
which the last two are kept; runs in `runs`, a line for each start and each end. All lines are JSON,
and one that is broken, as a power failure or a full disk leaves it, is passed over. Nothing is
synced: what the system has not written yet is lost with the power.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moat_kv import codec, errors

#: A file of runs is written anew when it has so many lines for each run that is kept.
_LINES_PER_RUN = 6
#: Results larger than this are not kept beside the job's last one, which is in the tree, in bytes.
RESULT_BYTES = 2048
#: A name of a file that says what it stands for as it is.
_PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}")
#: How long a run's folder may be read at a time, in bytes.
_READ_BYTES = 256 * 1024

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some lines, the oldest first, and where to go on."""

    lines: list[Facts]
    """Each with `at`, `run`, `stream`, `level` and `text`."""
    cursor: tuple[int, int]
    more: bool = False
    """There are more lines already."""
    missed: bool = False
    """Lines after the place that was asked for are gone."""


def name_of(text: str) -> str:
    """A file's name that stands for a text: the text itself, or its letters and a digest."""
    if _PLAIN_NAME.fullmatch(text):
        return text
    digest = hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8)
    return f"{re.sub('[^A-Za-z0-9_.-]', '_', text)[:60]}~{digest.hexdigest()}"


class JobFiles:
    """See above. Raises OSError."""

    def __init__(self, folder: pathlib.Path, *, runs: int) -> None:
        self.folder = folder
        self._runs = runs
        self._run_lines = 0
        self._number = 0
        # The segment that grows, and its length.
        self._segment = 1
        self._length = 0
        # The last write may have left the beginning of a line.
        self._is_torn = False
        self._is_loaded = False

    # Writing ------------------------------------------------------------------------------------

    def load(self) -> None:
        """Go on where an earlier runner has ended; what it left unfinished was cut off."""
        if self._is_loaded:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        segments = self._segments()
        self._segment = segments[-1] if segments else 1
        self._length = self._size(self._segment)
        self._is_torn = self._length > 0
        runs = self._read_runs()
        self._number = max((each["run"] for each in runs), default=0)
        ended = [
            {**each, "outcome": "cut off", "reason": "its runner ended in the middle of it"}
            for each in runs
            if "outcome" not in each
        ]
        self._is_loaded = True
        if ended:
            self.note_runs(ended)

    def begin(self, facts: Mapping[str, Any]) -> int:
        """Note that a run begins; its number."""
        self.load()
        self._number += 1
        self.note_runs([{**facts, "run": self._number}])
        return self._number

    def note_runs(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Note the start or the end of these."""
        place = self.folder / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        with place.open("ab") as file:
            # A line that a full disk has cut off must not spoil this one.
            file.write(b"".join(b"\n" + packed(each) for each in runs) + b"\n")
        self._run_lines += len(runs)
        if self._run_lines > _LINES_PER_RUN * self._runs:
            kept = self._read_runs()
            beside = self.folder / "runs.new"
            beside.write_bytes(b"".join(packed(each) + b"\n" for each in kept))
            beside.replace(place)
            self._run_lines = len(kept)

    def append(self, lines: Iterable[bytes], limit_bytes: int) -> None:
        """Add lines, and forget the oldest so that about `limit_bytes` are left."""
        self.load()
        most = limit_bytes // 2
        waiting: list[bytes] = []
        length = self._length
        for line in lines:
            if length + len(line) > most and length:
                self._write(waiting)
                self._next_segment()
                waiting, length = [], 0
            waiting.append(line)
            length += len(line)
        self._write(waiting)

    def _write(self, lines: list[bytes]) -> None:
        if not lines:
            return
        data = (b"\n" if self._is_torn else b"") + b"".join(lines)
        self._is_torn = True
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._place(self._segment).open("ab", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) or 0 :]
            self._length = file.tell()
        self._is_torn = False

    def _next_segment(self) -> None:
        self._segment += 1
        self._length = 0
        self._is_torn = False
        self.forget_old()

    def forget_old(self) -> None:
        """Only the last two segments are kept."""
        for number in self._segments():
            if number < self._segment - 1:
                self._place(number).unlink(missing_ok=True)

    def trim(self, limit_bytes: int) -> None:
        """Keep no more than that, if it is much more now."""
        self.load()
        if self._size(self._segment - 1) + self._length > 2 * limit_bytes:
            self._place(self._segment - 1).unlink(missing_ok=True)
        if self._length > limit_bytes:
            self._next_segment()

    def remove(self) -> None:
        """All of it, as the job is gone."""
        self._is_loaded = False
        self._number = self._run_lines = 0
        if self.folder.exists():
            shutil.rmtree(self.folder)

    # Reading ------------------------------------------------------------------------------------

    def runs(self) -> list[Facts]:
        """The last runs, the oldest first: `run`, `started`, and when it is over `outcome`."""
        if not self.folder.exists():
            return []
        self.load()
        return self._read_runs()

    def tail(self, count: int, *, run: int | None, most_bytes: int) -> Page:
        """The last lines, of one run or of all."""
        if not self.folder.exists():
            return Page(lines=[], cursor=(1, 0))
        self.load()
        found: list[Facts] = []
        left = most_bytes
        for number in reversed(self._segments()):
            data = self._place(number).read_bytes()
            if number == self._segment:
                data = data[: self._length]
            for line in reversed(data.split(b"\n")):
                facts = _line(line, run)
                if facts is None:
                    continue
                left -= len(line)
                if len(found) >= count or left < 0:
                    break
                found.append(facts)
        return Page(lines=found[::-1], cursor=(self._segment, self._length))

    def after(self, cursor: tuple[int, int], *, run: int | None, most_bytes: int) -> Page:
        """The lines after a place that an earlier page has named."""
        if not self.folder.exists():
            return Page(lines=[], cursor=(1, 0))
        self.load()
        number, offset = cursor
        segments = self._segments() or [self._segment]
        # A place that is not there any more, or is in a folder that was made anew.
        missed = not segments[0] <= number <= self._segment or offset > self._size(number)
        if missed:
            number, offset = segments[0], 0
        data = self._read(number, offset, most_bytes)
        whole = data[: data.rfind(b"\n") + 1]
        lines = [facts for line in whole.split(b"\n") if (facts := _line(line, run))]
        offset += len(whole)
        more = offset < self._size(number)
        if not more and number < self._segment:
            number, offset, more = number + 1, 0, True
        return Page(lines=lines, cursor=(number, offset), more=more, missed=missed)

    def _read(self, number: int, offset: int, most_bytes: int) -> bytes:
        try:
            with self._place(number).open("rb") as file:
                file.seek(offset)
                return file.read(most_bytes)
        except FileNotFoundError:
            return b""

    def _read_runs(self) -> list[Facts]:
        try:
            data = (self.folder / "runs").read_bytes()
        except FileNotFoundError:
            return []
        found: dict[int, Facts] = {}
        lines = [line for line in data.split(b"\n") if line]
        for line in lines:
            facts = _parsed(line)
            if isinstance(facts, dict) and type(facts.get("run")) is int:
                found[facts["run"]] = facts
        self._run_lines = len(lines)
        return [found[number] for number in sorted(found)[-self._runs :]]

    # Segments -----------------------------------------------------------------------------------

    def _segments(self) -> list[int]:
        names = [each.name for each in os.scandir(self.folder)]
        return sorted(int(name[6:]) for name in names if re.fullmatch("lines-[0-9]{1,9}", name))

    def _place(self, number: int) -> pathlib.Path:
        return self.folder / f"lines-{number}"

    def _size(self, number: int) -> int:
        try:
            return self._place(number).stat().st_size
        except FileNotFoundError:
            return 0


def packed(facts: Any) -> bytes:
    """A line of JSON, without its end."""
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def packed_line(*, at: float, run: int, stream: str, level: int | None, text: str) -> bytes:
    """A line that a run has printed or logged."""
    # Lone surrogates, as names of files have them, cannot be carried.
    carried = text.encode("utf-8", "backslashreplace").decode()
    return packed([round(at, 3), run, stream, level, carried]) + b"\n"


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _line(line: bytes, run: int | None) -> Facts | None:
    found = _parsed(line)
    if not isinstance(found, list) or len(found) != 5 or run not in (None, found[1]):
        return None
    return dict(zip(("at", "run", "stream", "level", "text"), found, strict=True))


def result_facts(result: Any) -> Facts:
    """A run's result, to be kept; nothing for None."""
    if result is None:
        return {}
    try:
        data = codec.pack(result)
    except errors.BadValue:
        return {}
    if len(data) > RESULT_BYTES:
        return {"result_bytes": len(data)}
    return {"result": base64.b64encode(data).decode()}


def with_result(facts: Mapping[str, Any]) -> Facts:
    """Facts of a run with its result as it was, if it was kept."""
    found = dict(facts)
    text = found.pop("result", None)
    if isinstance(text, str):
        with contextlib.suppress(ValueError, errors.MoatKvError):
            found["result"] = codec.unpack(base64.b64decode(text, validate=True))
    return found


def folders(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """The jobs' folders below a place."""
    if place.exists():
        for each in sorted(place.iterdir()):
            if each.is_dir():
                yield each
