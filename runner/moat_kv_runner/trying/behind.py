"""What a ground does not have comes from the real server, when a script first reads it.

`line` asks for each thing before the script's request goes on: one entry is read anew, a subtree
(or a topic) is followed from then on. What is faked, and what the script has written itself, is
left as it is on the ground. With `lets_through` what the script writes is written on the real
server as well, on the same conditions, but for what is faked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import anyio
import anyio.abc

from moat_kv import errors
from moat_kv.client import results
from moat_kv.client.client import Client
from moat_kv.path import Path

#: So many entries go to the ground at a time.
_SLICE = 500
_SUBTREES = ("get_tree", "list", "watch", "hash", "delete_tree")
_PATTERN = ("+", "#")
#: What hangs on something that only the ground has.
_BOUND = ("session", "guard", "fence")


def reads(action: str) -> bool:
    """Whether a stream of this kind shows what is on the server."""
    return action in (*_SUBTREES, "monitor", "history")


class _Followed:
    """One subtree that is copied to the ground for as long as the trial lasts."""

    def __init__(self, path: Path, depth: int) -> None:
        self.path = path
        self.depth = depth  # -1: all
        self.ready = anyio.Event()
        self.error: errors.MoatKvError | None = None

    def has(self, path: Path, depth: int) -> bool:
        below = len(path) - len(self.path)
        if not path.startswith(self.path):
            return False
        return self.depth == -1 or (depth != -1 and below + depth <= self.depth)


class Behind:
    """See above. `real` is a client of the real server, `desk` one of the ground."""

    def __init__(
        self,
        real: Client,
        desk: Client,
        tasks: anyio.abc.TaskGroup,
        *,
        faked: Collection[Path],
        lets_through: bool,
    ) -> None:
        self.real = real
        self.tasks = tasks
        self.lets_through = lets_through
        self._desk = desk
        self._faked = frozenset(faked)
        # What the ground knows better than the server.
        self._own = set(faked)
        self._followed: list[_Followed] = []
        self._topics: dict[Path, anyio.Event] = {}
        # Of entries that came from the real server, the revisions there.
        self._revs: dict[Path, int] = {}
        # Held while something from the server is being written to the ground.
        self._copying = anyio.Lock()

    # Before a request ---------------------------------------------------------------------------

    async def prepare(self, action: str, arguments: dict[str, Any]) -> list[Path]:
        """Have on the ground what a request is about.

        Returns what the ground begins to know better, if the request succeeds. Raises what the real
        server answers.
        """
        claimed: list[Path] = []
        if action in _SUBTREES:
            path, depth = arguments["path"], arguments.get("max_depth", -1)
            if arguments.get("match"):
                fixed = next((n for n, each in enumerate(path) if each in _PATTERN), len(path))
                path, depth = path[:fixed], -1
            await self._follow(path, depth)
        elif action in ("get", "history"):
            await self._refresh(arguments["path"])
        elif action == "monitor":
            await self._listen(arguments["topic"])
        elif action == "batch":
            for path, _value, options in arguments["writes"]:
                claimed += await self._prepare_write(path, options)
        elif action in ("set", "delete", "patch"):
            claimed += await self._prepare_write(arguments["path"], arguments)
        return claimed

    async def _prepare_write(self, path: Path, options: dict[str, Any]) -> list[Path]:
        if self.lets_through and path not in self._faked:
            bound = [name for name in _BOUND if name in options]
            if bound:
                reason = f"{bound[0]}: such a write cannot be let through from a trial"
                raise errors.BadValue(reason)
        if path in self._own:
            return []
        await self._refresh(path)
        async with self._copying:
            self._own.add(path)
        return [path]

    async def _refresh(self, path: Path) -> None:
        """Read one entry anew, unless it is followed."""
        if _is_system(path) or path in self._own:
            return
        for each in self._followed:
            if each.has(path, 0):
                await each.ready.wait()
                return
        await self._copy([await self._event(path)])

    async def _event(self, path: Path) -> results.WatchEvent:
        found = await self.real.get(path)
        event = results.WatchEvent(found.rev, None)
        event.path = path
        if "value" in found:
            event.value = found.value
        return event

    # Copying ------------------------------------------------------------------------------------

    async def _follow(self, path: Path, depth: int) -> None:
        if _is_system(path):
            return
        followed = next((each for each in self._followed if each.has(path, depth)), None)
        if followed is None:
            followed = _Followed(path, depth)
            self._followed.append(followed)
            self.tasks.start_soon(self._feed, followed)
        await followed.ready.wait()
        if followed.error is not None:
            raise followed.error

    async def _feed(self, followed: _Followed) -> None:
        try:
            watch = self.real.watch(followed.path, fetch=True, max_depth=followed.depth)
            known: set[Path] = set()
            missed: set[Path] = set()
            async with watch:
                while batch := await watch.next_batch():
                    changes = [each for each in batch if isinstance(each, results.WatchEvent)]
                    if any(isinstance(each, results.Reset) for each in batch):
                        missed = set(known)
                    known.update(each.path for each in changes if "value" in each)
                    missed.difference_update(each.path for each in changes)
                    await self._copy(changes)
                    if any(isinstance(each, results.Ready) for each in batch):
                        await self._copy([_gone(path) for path in missed])
                        missed.clear()
                        followed.ready.set()
        except errors.MoatKvError as exc:
            followed.error = exc
            self._followed.remove(followed)
            followed.ready.set()

    async def _copy(self, events: Sequence[results.WatchEvent]) -> None:
        """Have the ground show this, where it does not know better."""
        async with self._copying:
            newest = {each.path: each for each in events if each.path not in self._own}
            desk, ops = self._desk, []
            for path, event in newest.items():
                self._revs[path] = event.rev if "value" in event else 0
                if "value" in event:
                    ops.append(desk.op_set(path, event.value, idem=True))
                else:
                    ops.append(desk.op_delete(path))
            for start in range(0, len(ops), _SLICE):
                await desk.batch(ops[start : start + _SLICE])

    async def _listen(self, topic: Path) -> None:
        """Pass messages on that are sent on the real server."""
        begun = self._topics.get(topic)
        if begun is None:
            begun = self._topics[topic] = anyio.Event()
            if not any(topic.startswith(each) for each in self._topics if each != topic):
                await self.tasks.start(self._pass_on, topic)
            begun.set()
        await begun.wait()

    async def _pass_on(self, topic: Path, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with self.real.monitor(topic) as monitor:
            task_status.started()
            async for message in monitor:
                await self._desk.send(message.topic, message.value)

    # After a write ------------------------------------------------------------------------------

    async def written(self, action: str, arguments: dict[str, Any], value: bytes | None) -> None:
        """The ground has taken a write; let it through. Raises what the real server answers."""
        if not self.lets_through:
            return
        if action in ("set", "delete", "patch"):
            if arguments["path"] not in self._faked:
                await self.real.request(action, self._translated(arguments), value)
                await self._reread([arguments["path"]])
        elif action == "batch":
            real = [each for each in arguments["writes"] if each[0] not in self._faked]
            ops = [
                [path, packed, self._translated(options, path)] for path, packed, options in real
            ]
            if ops:
                await self.real.request("batch", {"writes": ops}, None)
                await self._reread([each[0] for each in real])
        elif action == "delete_tree":
            await self.real.request(action, arguments, None)

    async def failed(self, claimed: Sequence[Path]) -> None:
        """A request was refused, here or there; the ground shows what is really there."""
        await self._reread(claimed)

    async def _reread(self, paths: Sequence[Path]) -> None:
        mine = [path for path in paths if path not in self._faked and not _is_system(path)]
        self._own.difference_update(mine)
        await self._copy([await self._event(path) for path in mine])

    def _translated(self, options: dict[str, Any], path: Path | None = None) -> dict[str, Any]:
        """A write's arguments with the revision that the real server knows."""
        path = options["path"] if path is None else path
        made = dict(options)
        if "expect" in made:
            made["expect"] = self._revs.get(path, 0)
        return made


def _gone(path: Path) -> results.WatchEvent:
    event = results.WatchEvent(0, None)
    event.path = path
    return event


def _is_system(path: Path) -> bool:
    return bool(path) and path[0] is None
