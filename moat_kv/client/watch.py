"""Watches: the changes below a path, over any number of lines.

`Feed` follows one subtree (or pattern) of the server's tree: it keeps the place to resume from and
asks from there on each new line; `Watch` and `mirror` are its two consumers. A `Watch` has a queue
that is conflated: for each path only the newest change waits, in the place of the older one, so it
never holds more than the subtree has entries, and the line's reader never waits for it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

from moat_kv import errors
from moat_kv.client import results, streams, subscription
from moat_kv.notgiven import NotGiven, NotGivenType
from moat_kv.path import Path

if TYPE_CHECKING:
    from moat_kv.client.link import Link

#: What a watch hands out.
Event: TypeAlias = "results.WatchEvent | results.Mark | results.Ready | results.Reset"


#: Of so many pending entries at most it is asked, on a new line, what has become of them; if there
#: are more, the state is told anew.
AGAIN_LIMIT = 1_000


class Feed(streams.Stream):
    """One watch on the server, resumed on each line. Subclasses take what it tells.

    A place to resume from is known once the state was told completely, or from the start if no
    state was asked for. If the line breaks before that, what was told is void: `on_reset`.
    """

    action = "watch"

    def __init__(
        self,
        link: Link,
        path: Path,
        *,
        fetch: bool,
        min_depth: int = 0,
        max_depth: int = -1,
        match: bool = False,
        since: results.Mark | None = None,
    ) -> None:
        super().__init__(link)
        self.path = path
        self._fetch = fetch
        self._options: dict[str, Any] = {}
        if min_depth:
            self._options["min_depth"] = min_depth
        if max_depth != -1:
            self._options["max_depth"] = max_depth
        if match:
            self._options["match"] = True
        #: Everything up to here was told; None while a state is on its way.
        self._place = since
        # Whether the consumer waits for the end of a state.
        self._fetching = fetch
        # Whether the state that is on its way has been told in part.
        self._in_part = False
        self._epoch = ""
        self._start_rev = 0
        # What was told and was pending: the next server may know nothing of it.
        self._pending: set[Path] = set()

    # What a consumer is told; none of it may block or raise -------------------------------------

    def on_rows(self, rows: list[list[Any]]) -> None:
        """Entries `[absolute path, packed value or None, rev, at, id]`, and true if pending."""
        raise NotImplementedError

    def on_mark(self, mark: results.Mark) -> None:
        """Everything up to here has been told."""

    def on_ready(self) -> None:
        """The state has been told completely."""

    def on_reset(self, reason: str) -> None:
        """Changes may have been missed; a state follows anew."""

    # The stream ---------------------------------------------------------------------------------

    def ask(self) -> dict[str, Any]:
        if self._place is not None and len(self._pending) > AGAIN_LIMIT:
            self._begin_anew("too many entries were pending when the line broke")
        arguments = {"path": self.path, **self._options}
        if self._place is not None:
            arguments["since"] = [self._place.epoch, self._place.rev]
            if self._pending:
                arguments["again"] = list(self._pending)
        elif self._fetching or self._in_part:
            arguments["fetch"] = True
        if self._place is None and self._in_part:
            self._begin_anew("the line broke before the state was complete")
        return arguments

    def _begin_anew(self, reason: str) -> None:
        self._place = None
        self._fetching = True
        self._in_part = False
        self._pending.clear()
        self.on_reset(reason)

    def started(self, fields: dict[str, Any]) -> None:
        self._epoch = self._link.server.epoch
        self._start_rev = fields["rev"]
        if self._place is None and not self._fetching:
            self._reach(self._start_rev)

    def item(self, fields: dict[str, Any], value: bytes | None) -> None:
        if "reset" in fields:
            self._begin_anew(str(fields["reset"]))
        rows = fields.get("rows")
        if rows:
            self._in_part = True
            self._link.saw(max(row[2] for row in rows))
            for row in rows:
                if len(row) > 5:
                    self._pending.add(row[0])
                elif self._pending:
                    self._pending.discard(row[0])
            self.on_rows(rows)
        if fields.get("ready"):
            self._in_part = False
            # What was there when it started has been told now.
            self._reach(max(self._start_rev, fields.get("mark", 0)))
            if self._fetching:
                self._fetching = False
                self.on_ready()
        elif "mark" in fields:
            self._reach(fields["mark"])

    def _reach(self, rev: int) -> None:
        self._place = results.Mark(rev=rev, epoch=self._epoch)
        self._link.saw(rev)
        self.on_mark(self._place)


class Watch(Feed, subscription.Subscription[Event]):
    """`async with client.watch(path) as w: async for event in w`.

    Gives `WatchEvent`s in the order in which they came, but for those that were conflated; after a
    `fetch` one `Ready`; `Reset` where changes may have been missed, followed by the present state
    and `Ready`; with `marks`, `Mark`s.
    """

    def __init__(self, link: Link, path: Path, *, marks: bool, **options: Any) -> None:
        super().__init__(link, path, **options)
        #: Everything up to here was handed out; can be saved, and given to another `watch`.
        self.since: results.Mark | None = self._place
        self._marks = marks
        # What waits, in order: a path stands for its row in `_rows`.
        self._queue: deque[Path | results.Mark | results.Ready | results.Reset] = deque()
        self._rows: dict[Path, list[Any]] = {}

    def waiting(self) -> bool:
        return bool(self._queue)

    def take(self) -> Event | NotGivenType:
        item = self._queue.popleft()
        if isinstance(item, Path):
            return results.event_of(self._rows.pop(item), self._epoch)
        if isinstance(item, results.Mark):
            self.since = item
            return item if self._marks else NotGiven
        if isinstance(item, results.Reset):
            self.since = None
        return item

    # The feed -----------------------------------------------------------------------------------

    def on_rows(self, rows: list[list[Any]]) -> None:
        waiting = self._rows
        for row in rows:
            path = row[0]
            if path not in waiting:
                self._queue.append(path)
            waiting[path] = row
        self.changed()

    def on_mark(self, mark: results.Mark) -> None:
        # A mark waits behind what it covers. Two in a row are one, so there are never more of them
        # than of paths.
        if self._queue and isinstance(self._queue[-1], results.Mark):
            self._queue[-1] = mark
        else:
            self._queue.append(mark)
        self.changed()

    def on_ready(self) -> None:
        self._queue.append(results.Ready())
        self.changed()

    def on_reset(self, reason: str) -> None:
        self._queue.clear()
        self._rows.clear()
        self._queue.append(results.Reset(reason=reason))
        self.changed()


def mark_of(since: Any) -> results.Mark | None:
    """A place to resume from: a `Mark`, or `(epoch, revision)`, or None."""
    if since is None or isinstance(since, results.Mark):
        return since
    try:
        epoch, rev = since
    except (TypeError, ValueError):
        epoch, rev = None, None
    if type(epoch) is not str or type(rev) is not int:
        raise errors.BadArguments("watch", "since is a Mark, or (epoch, revision)")
    return results.Mark(rev=rev, epoch=epoch)
