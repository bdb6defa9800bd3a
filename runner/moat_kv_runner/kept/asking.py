"""The desk's side: asks the runners of a group what a job's runs have left, and collects answers.

Used by the command line. Messages may be lost, so a question is sent twice; answers name the
question, so one that comes late is not taken for another's. Who does not answer is just missing.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Mapping
from typing import Any, Self

import anyio

from moat_kv import config, errors
from moat_kv.client.client import Client
from moat_kv.path import Path
from moat_kv_runner.kept import questions

#: How long runners may take to answer, in seconds; they give up themselves a little earlier.
LIMIT_S = 5.0
#: When a question is sent once more, in seconds.
AGAIN_S = 1.5

Answers = dict[str, Mapping[str, Any]]


class Desk:
    """Asks about one job: `async with Desk(...) as desk: await desk.ask(...)`, one at a time."""

    def __init__(
        self, client: Client, places: config.Places, *, group: Path, kind: str, path: Path
    ) -> None:
        self._client = client
        self._token = secrets.token_hex(8)
        self._number = 0
        self._topic = questions.ask_topic(places, group)
        self._whose: dict[str, Any] = {"kind": kind, "path": path}
        self._held = contextlib.AsyncExitStack()
        self._answers = client.monitor(
            questions.answer_topic(places, group, self._token), max_depth=0
        )

    async def __aenter__(self) -> Self:
        await self._held.enter_async_context(self._answers)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._held.__aexit__(*exc_info)

    async def ask(
        self, what: str, expected: Collection[str], *, limit_s: float | None = None, **facts: Any
    ) -> Answers:
        """The answers by node, when all of the expected are there or the time is over, `LIMIT_S`.

        `what` and `facts` are those of `questions.Question`. Each answer has `runs`, or `lines` and
        `cursor`, or `error`. Raises Disconnected.
        """
        self._number += 1
        asked = questions.Question(
            token=self._token, number=self._number, what=what, **self._whose, **facts
        )
        found: Answers = {}
        with anyio.move_on_after(LIMIT_S if limit_s is None else limit_s):
            await self._client.send(self._topic, asked.as_value())
            with anyio.move_on_after(AGAIN_S):
                await self._collect(found, expected)
            if not found.keys() >= set(expected):
                await self._client.send(self._topic, asked.as_value())
                await self._collect(found, expected)
        return found

    async def _collect(self, found: Answers, expected: Collection[str]) -> None:
        while not found.keys() >= set(expected):
            message = await anext(self._answers)
            with contextlib.suppress(errors.BadValue):
                value = message.value
                if isinstance(value, Mapping) and value.get("number") == self._number:
                    found[str(value.get("node"))] = value
