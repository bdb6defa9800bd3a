"""One script in a box: what it has received, written and returned.

`box.Box.run_script` starts it and hands it to the test. Everything that a test reads here is as it
was when all had settled.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from moat_kv.client import error_record
from moat_kv.client.client import Client
from moat_kv.code import compiling
from moat_kv.path import P, Path
from moat_kv_runner import execution, messages
from moat_kv_runner.trying import ground, happenings, trial

if TYPE_CHECKING:
    from moat_kv_runner.testing.box import Box


class ScriptRun:
    """See above."""

    def __init__(self, box: Box) -> None:
        self._box = box
        #: All that happened, in order; see `moat_kv_runner.trying.happenings`.
        self.happenings: list[happenings.Happening] = []
        self._trial: trial.Trial
        self._scope: anyio.CancelScope  # made in the loop, when it begins
        # Its modules have been loaded, which is done in a thread.
        self._has_begun = False
        self._over = False
        self._result: Any = None
        self._error: BaseException | None = None
        #: Somebody has looked at the error.
        self.error_was_seen = False

    # For the box --------------------------------------------------------------------------------

    def tell(self, happening: happenings.Happening) -> None:
        self.happenings.append(happening)

    async def work(
        self,
        on: ground.Ground,
        make: Callable[[Client], trial.Trial],
        builtins: Mapping[str, Any] | None,
    ) -> None:
        """The run, from its line to its end; a task of its own."""
        compiling.BUILTINS.set(builtins)
        try:
            with anyio.CancelScope() as self._scope:
                async with on.line(self.tell) as line:
                    self._trial = make(line)
                    try:
                        self._result = await self._trial.run()
                    except Exception as exc:
                        self._error = _with_lines(execution.cause_of(exc))
        finally:
            self._over = True

    def begins(self) -> None:
        self._has_begun = True

    def is_in_thread(self, is_async: bool) -> bool:
        """Whether a thread works for it that its loop does not know of."""
        return not self._over and not (self._has_begun and is_async)

    def cancel(self) -> None:
        self._scope.cancel()

    @property
    def unseen_error(self) -> BaseException | None:
        return None if self.error_was_seen else self._error

    # What became of it --------------------------------------------------------------------------

    @property
    def messages(self) -> list[Any]:
        """What the script has taken from `_info`, in order."""
        return [each.message for each in self.happenings if isinstance(each, happenings.Got)]

    def messages_of(self, kind: str | type) -> list[Any]:
        """Those of one class, or of a subclass of it: `messages_of("ChangeMsg")`."""
        return [each for each in self.messages if _is_of(each, kind)]

    @property
    def writes(self) -> list[tuple[str, Any]]:
        """What the script has written, in order: paths as text, and values; deletions are None."""
        found: list[tuple[str, Any]] = []
        for each in self.happenings:
            if isinstance(each, happenings.Wrote):
                found.append((str(each.path), each.value))
            elif isinstance(each, happenings.Deleted):
                found.append((str(each.path), None))
        return found

    @property
    def sent(self) -> list[tuple[str, Any]]:
        """What the script has broadcast: topics as text, and values."""
        sent = [each for each in self.happenings if isinstance(each, happenings.Sent)]
        return [(str(each.topic), each.value) for each in sent]

    @property
    def errors(self) -> dict[str, str]:
        """Errors that the script has recorded and that are not over: their messages by path."""
        found: dict[str, str] = {}
        for each in self.happenings:
            if isinstance(each, happenings.Recorded):
                found[str(each.path)] = each.message
            elif isinstance(each, happenings.Resolved):
                found.pop(str(each.path), None)
        return found

    @property
    def works(self) -> bool:
        """Whether the script has called `setup_done`."""
        return any(isinstance(each, happenings.WorksWell) for each in self.happenings)

    @property
    def entries(self) -> dict[str, Any]:
        """All entries of the box now, by path as text."""
        return self._box.entries

    @property
    def is_over(self) -> bool:
        return self._over

    @property
    def result(self) -> Any:
        """What the script has returned. Raises what it has raised; AssertionError if it goes on."""
        self._raise_error()
        assert self._over, "the script still runs"
        return self._result

    @property
    def error(self) -> BaseException | None:
        """What the script has raised; then a test has seen it, and may go on."""
        self.error_was_seen = True
        return self._error

    def _raise_error(self) -> None:
        if self._error is not None:
            self.error_was_seen = True
            raise self._error

    # What a test does ---------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let so much time pass, at once: its timers and sleeps end in their order."""
        self._box.advance(seconds)

    def wait_for(
        self, what: Callable[[], Any] | str | Path, value: Any = ..., *, within_s: float = 0.0
    ) -> None:
        """Until a condition holds, or an entry has this value (or any), within so much time.

        Nothing is waited for but virtual time, which passes in steps from timer to timer. Raises
        what the script has raised; AssertionError, which says how it is instead.
        """
        if callable(what):
            holds, name = what, getattr(what, "__name__", "it")
        else:
            path = P(what) if isinstance(what, str) else what
            name = str(path) if value is ... else f"{path} is {value!r}"

            def holds() -> bool:
                found = self.entries
                return str(path) in found and (value is ... or found[str(path)] == value)

        if not self._box.step_until(lambda: bool(holds()) or self._over, within_s) or not holds():
            self._raise_error()
            after = f" within {within_s:g} s" if within_s else ""
            raise AssertionError(f"not so{after}: {name}\n{self.describe()}")

    def tell_state(self, kind: str, *, members: tuple[str, ...] = (), nodes: int = 2) -> None:
        """Tell the script of a change in its group: `complete`, `partial`, `detached`, `broken`."""
        state = group_state(kind, members, nodes)

        async def tell() -> None:
            self._trial.admin.tell_state(state)

        self._box.do(tell)

    def stop(self) -> None:
        """End it as a runner does: it is cancelled, and its contexts are closed."""
        self._box.stop_run(self)

    def describe(self) -> str:
        """All that happened, a line each, and how it is now."""
        lines = [" ".join(map(str, happenings.words(each))) for each in self.happenings]
        if self._error is not None:
            lines.append(f"failed: {error_record.describe(self._error)}")
        else:
            lines.append(f"returned {self._result!r}" if self._over else "it still runs")
        entries = [f"  {path}: {value!r}" for path, value in self.entries.items()]
        return "\n".join([*lines, "entries:", *entries])


def _with_lines(error: BaseException) -> BaseException:
    """The error with a note of the script's lines: pytest leaves such frames out."""
    lines = traceback.format_tb(error.__traceback__)
    error.add_note("".join(["in the script:\n", *lines]).rstrip())
    return error


def _is_of(message: Any, kind: str | type) -> bool:
    if isinstance(kind, type):
        return isinstance(message, kind)
    return any(cls.__name__ == kind for cls in type(message).__mro__)


def group_state(kind: str, members: tuple[str, ...], nodes: int) -> messages.ActorState:
    """A group's state by name. Raises ValueError."""
    classes = {
        "complete": messages.CompleteState,
        "partial": messages.PartialState,
        "detached": messages.DetachedState,
        "broken": messages.BrokenState,
    }
    if kind not in classes:
        raise ValueError(f"{kind!r} is no state of a group; there are {', '.join(classes)}")
    return classes[kind](messages.GroupSeen(members=members, nodes=nodes))
