"""What a child prints and logs, as lines on two pipes, and what its runner makes of them.

Both sides. One pipe for standard output and one for errors. A printed line is itself; a log record
is a line of JSON behind a mark that nobody prints by chance, among the errors. The runner takes at
most so much in a second, so that a flood fills the pipe and holds up its own writer, and nobody
else.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable

_MARK = "\x1e"
_MARK_BYTE = _MARK.encode()
#: The rest of a longer line is left out.
LINE_BYTES = 8 * 1024
#: A text of a record is longer by what surrounds it.
_RECORD_BYTES = LINE_BYTES - 512
#: So many lines in a second, and so many at once after a silence; the others are only counted.
LINES_PER_S = 200
BURST_LINES = 1000
#: So many bytes are taken in a second. The writer waits then.
BYTES_PER_S = 1024 * 1024

_ERRORS = 2
#: The logger of jobs; what they say on it for people is kept, also where the runner's log has no
#: room for it.
JOBS = "moat_kv.job"
KEPT_LEVEL = logging.INFO


class PipeHandler(logging.Handler):
    """In the child: each record is one line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[:_RECORD_BYTES]
            line = _MARK + json.dumps([record.levelno, record.name, text]) + "\n"
            data = line.encode()
            while data:
                data = data[os.write(_ERRORS, data) :]
        except OSError:
            self.handleError(record)


def start(level: int) -> None:
    """In the child: log to the runner, whose own log takes records from this level on."""
    root = logging.getLogger()
    root.handlers[:] = [PipeHandler()]
    root.setLevel(level)
    logging.getLogger(JOBS).setLevel(min(level, KEPT_LEVEL))
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread is not None else "?"
        logging.getLogger(JOBS).error("thread %s failed", name, exc_info=args.exc_value)


class Rate:
    """How many lines may come, and which had to be left out."""

    def __init__(self) -> None:
        self._tokens = float(BURST_LINES)
        self._counted_at = time.monotonic()
        self._dropped = 0

    def takes_one(self) -> bool:
        """Whether another line is taken."""
        now = time.monotonic()
        self._tokens = min(BURST_LINES, self._tokens + (now - self._counted_at) * LINES_PER_S)
        self._counted_at = now
        if self._tokens < 1:
            self._dropped += 1
            return False
        self._tokens -= 1
        return True

    def left_out(self) -> str | None:
        """What is to be said of lines that were left out since the last time."""
        dropped, self._dropped = self._dropped, 0
        return f"{dropped} lines of its output were left out" if dropped else None


class Lines:
    """The runner's side: bytes to lines, and no more of them than can be taken."""

    def __init__(
        self,
        printed: Callable[[str], None],
        logged: Callable[[int, str, str], None],
        rate: Rate | None = None,
    ) -> None:
        self._printed = printed
        self._logged = logged
        self._rate = rate or Rate()
        self._rest = b""
        # The rest of the present line is left out.
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            if self._is_cut:
                self._is_cut = False
            else:
                self._take(line)
        if len(self._rest) > LINE_BYTES:
            if not self._is_cut:
                self._take(self._rest[:LINE_BYTES] + b" ...")
            self._is_cut = True
            self._rest = b""

    def end(self) -> None:
        if self._rest and not self._is_cut:
            self._take(self._rest)
        self._rest = b""
        self._tell_dropped()

    def _take(self, line: bytes) -> None:
        if not self._rate.takes_one():
            return
        self._tell_dropped()
        # What was printed before a record may have had no end of line.
        printed, mark, record = line.partition(_MARK_BYTE)
        if mark and self._take_record(record):
            if not printed:
                return
            line = printed
        text = line[: LINE_BYTES + 4].decode("utf-8", "backslashreplace")
        self._printed(text)

    def _take_record(self, line: bytes) -> bool:
        try:
            level, name, text = json.loads(line)
        except (ValueError, TypeError):
            return False
        if type(level) is not int or type(name) is not str or type(text) is not str:
            return False
        self._logged(level, name, text)
        return True

    def _tell_dropped(self) -> None:
        text = self._rate.left_out()
        if text is not None:
            self._logged(logging.WARNING, "", text)
