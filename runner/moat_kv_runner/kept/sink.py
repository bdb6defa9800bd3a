"""Where one run puts what it prints and logs, and its end.

Made by `recorder`, used by `running`, which gives it to the run: an inline script's `_log` is a
`RunLogger` of it, a child's output comes through `process_run`. Nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moat_kv.client import error_record
from moat_kv.path import Path
from moat_kv_runner.children import reporting
from moat_kv_runner.kept import files

if TYPE_CHECKING:
    from moat_kv_runner.kept.recorder import Recorder

#: How much of an error or a reason is kept, in characters.
_TEXT_LIMIT = 500


class RunSink:
    """One run, as it is kept."""

    def __init__(self, recorder: Recorder, kind: str, path: Path, facts: Mapping[str, Any]) -> None:
        self.kind = kind
        self.path = path
        #: What is known of it from its begin on.
        self.facts = dict(facts)
        #: Set by the recorder's thread when the run is noted; 0: not yet, or it could not be.
        self.number = 0
        #: Its job is gone.
        self.is_forgotten = False
        #: Lines that could not be kept, and were not told of yet; under the recorder's lock.
        self.lost = 0
        self._recorder = recorder

    def printed(self, stream: str, text: str) -> None:
        """A line on `out` or `err`."""
        self._put(stream, None, text)

    def logged(self, level: int, name: str, text: str) -> None:
        """A log record; `name` of its logger is kept unless it is the job's own."""
        is_own = not name or name.startswith(reporting.JOBS)
        self._put("log", level, text if is_own else f"{name}: {text}")

    def _put(self, stream: str, level: int | None, text: str) -> None:
        self._recorder.line(self, stream, level, text[: reporting.LINE_BYTES])

    def ended(
        self,
        outcome: str,
        *,
        at: float,
        result: Any = None,
        error: BaseException | None = None,
        reason: str | None = None,
    ) -> None:
        """It is over. `outcome` is a word: done, failed, stopped, ...; `error` and `reason` say
        more."""
        facts: dict[str, Any] = {"stopped": at, "outcome": outcome, **files.result_facts(result)}
        if error is not None:
            facts["error"] = error_record.describe(error)
        if reason is not None:
            facts["reason"] = reason[:_TEXT_LIMIT]
        self._recorder.end(self, facts)


class RunLogger(logging.Logger):
    """`_log` of a script in the runner's own process.

    What is said on it is kept with the run, from `reporting.KEPT_LEVEL` on, and goes the way of the
    logger of that name, so that the runner's log has what it is set up to have.
    """

    def __init__(self, name: str, sink: RunSink) -> None:
        public = logging.getLogger(name)
        super().__init__(name, min(public.getEffectiveLevel(), reporting.KEPT_LEVEL))
        self.parent = public
        self.propagate = False
        self._sink = sink
        self.addHandler(_Keeping(sink, public))

    def getChild(self, suffix: str) -> RunLogger:
        return RunLogger(f"{self.name}.{suffix}", self._sink)


class _Keeping(logging.Handler):
    def __init__(self, sink: RunSink, public: logging.Logger) -> None:
        super().__init__()
        self._sink = sink
        self._public = public
        self._rate = reporting.Rate()

    def emit(self, record: logging.LogRecord) -> None:
        if self._rate.takes_one():
            dropped = self._rate.left_out()
            if dropped is not None:
                self._sink.logged(logging.WARNING, "", dropped)
            try:
                text = self.format(record)
            except Exception as exc:  # its arguments do not fit
                text = f"{record.msg} (cannot be formatted: {exc!r})"
            self._sink.logged(record.levelno, record.name, text)
        if self._public.isEnabledFor(record.levelno):
            self._public.handle(record)
