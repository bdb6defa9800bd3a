"""How a script follows the bus: which side of a pair moves, when to try again, what to report.

Stored as the module `onewire.follow`; the procedures `onewire.temperatures` and
`onewire.switches` use it. `Pair` and `BackOff` are pure; `Marks` and `Health` write to the tree
through the procedure's `_self`. Nothing here talks to a bus.
"""

from __future__ import annotations

import time
from typing import Any, Literal

Side = Literal["entry", "bus"]


class Pair:
    """One output and its entry; tells which of the two is to be written.

    `entry` and `bus` are what each side said last, None if that is not known. While `wanted`,
    the entry has changed and the bus has not followed. While `wrong`, what is in the entry is no
    state; only a change on the bus replaces that. What a script writes itself comes back as a
    change that leaves both sides equal, and so moves nothing: no ping-pong.
    """

    def __init__(self) -> None:
        self.entry: bool | None = None
        self.bus: bool | None = None
        self.rev = 0
        self.wanted = False
        self.wrong = False

    @property
    def expect(self) -> int:
        """The revision that the entry must still have when the script writes it; 0: none."""
        return 0 if self.entry is None and not self.wrong else self.rev

    def entry_is(self, on: bool | None, rev: int, *, news: bool = True) -> bool:
        """The entry has this value (None: deleted). True if the bus is to be written.

        `news` is false for what was there when the script began. What is older than the script's
        own last write to the entry is no news either and is ignored.
        """
        if rev <= self.rev:
            return False
        self.entry = on
        self.rev = rev
        self.wrong = False
        self.wanted = news and on is not None and on != self.bus
        return self.wanted

    def entry_is_wrong(self, rev: int) -> None:
        """The entry holds something that is no state."""
        if rev > self.rev:
            self.rev = rev
            self.wrong = True
            self.wanted = False

    def bus_is(self, on: bool, prefer: Side) -> Side | None:
        """The bus has this state: which side is to be written, if any.

        `prefer` is the side that is right when a switch that was not seen before, or was away,
        differs from an entry that did not change meanwhile.
        """
        before, self.bus = self.bus, on
        if self.wrong:
            return None if before in (None, on) else "entry"
        if self.entry == on:
            self.wanted = False
            return None
        if self.entry is None:
            return "entry"
        if before is None and prefer == "entry":
            self.wanted = True
        return "bus" if self.wanted else "entry"

    def entry_written(self, on: bool, rev: int) -> None:
        self.entry = on
        self.rev = rev
        self.wrong = False

    def bus_written(self, on: bool) -> None:
        self.bus = on
        self.wanted = self.entry is not None and self.entry != on

    def bus_lost(self) -> None:
        """The switch, or the bus, is away."""
        self.bus = None


class BackOff:
    """Growing delays between tries: `first_s`, then twice as long each time, up to `most_s`."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self.first_s = first_s
        self.most_s = most_s
        self.tries = 0

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        delay = self.first_s * 2.0 ** min(self.tries, 60)
        self.tries += 1
        return min(delay, self.most_s)

    def reset(self) -> None:
        self.tries = 0


class Marks:
    """Error records of single entries, written only when something changes.

    The first good news about a path resolves too: a former run may have left a record.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._last: dict[Any, str] = {}

    async def bad(self, path: Any, error: object, **facts: Any) -> None:
        text = str(error)
        if self._last.get(path) != text:
            self._last[path] = text
            await self._call.record_error(path, message=text, data=facts)

    async def good(self, path: Any) -> None:
        if self._last.get(path) != "":
            self._last[path] = ""
            await self._call.resolve_error(path)


class Health:
    """Whether the bus is there: its state entry, its error record, and when to try again."""

    def __init__(self, call: Any, path: Any, back_off: BackOff) -> None:
        self._call = call
        self._path = path
        self._back_off = back_off
        self._marks = Marks(call)
        self._shown: dict[str, Any] = {}

    async def up(self, **facts: Any) -> None:
        """It works; `facts` (how many devices, say) go into the state entry."""
        self._back_off.reset()
        if self._shown.get("state") != "up":
            await self._call.setup_done()
        await self._marks.good(self._path)
        await self._show({"state": "up", **facts})

    async def down(self, error: object) -> float:
        """It does not, and why. Returns the seconds until it is worth another try."""
        await self._marks.bad(self._path, error)
        await self._show({"state": "down", "error": str(error)})
        return self._back_off.next_s()

    async def _show(self, value: dict[str, Any]) -> None:
        if value != self._shown:
            self._shown = value
            await self._call.set(self._path, {**value, "since": time.time()})
