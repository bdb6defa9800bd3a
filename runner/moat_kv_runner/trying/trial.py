"""One run of a procedure on a ground, with all names that a job has.

The command line and the pytest plugin make a `Trial`, and call `run`. The script is run by the same
code as in a runner (`execution`), in the event loop that calls; a synchronous one in a thread
beside it. Its claim is none: `_self.fence` is 1, and nothing it writes is guarded.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from moat_kv import errors
from moat_kv.client import writes
from moat_kv.client.client import Client
from moat_kv.code import compiling, procedures, requires
from moat_kv.config import Config, Places, RunnerConfig
from moat_kv.path import Path
from moat_kv_runner import (
    admin,
    execution,
    info_queue,
    messages,
    readiness,
    script_client,
    script_config,
)
from moat_kv_runner.trying import happenings
from moat_kv_runner.trying import line as line_module

#: The number of a claim that there is not.
FENCE = 1


@dataclass(frozen=True, kw_only=True)
class Script:
    """What is tried out."""

    procedure: compiling.Procedure
    variables: Mapping[str, Any]
    """Its arguments over its defaults."""
    needs: requires.Needs = field(default_factory=requires.Needs)
    job: Path = field(default_factory=lambda: Path("trial"))
    """What `_self.path` is."""
    node: str = "trial"
    """What `_self.node` is, and the only member of the group."""
    group: Path = field(default_factory=lambda: Path("default"))


def script_of(
    value: Mapping[str, Any], *, name: str, rev: int = 0, data: Mapping[str, Any], **facts: Any
) -> Script:
    """The script in a procedure's value, with these arguments over its defaults.

    Raises BadCode, BadValue, MissingVariable.
    """
    procedure, needs = procedures.check(value, name=name, rev=rev)
    variables = procedures.merged(value.get("default") or {}, data)
    given = readiness.INJECTED + (readiness.INJECTED_ASYNC if procedure.is_async else ())
    for each in procedure.variables:
        if each not in variables and each not in given:
            raise errors.MissingVariable(each, name)
    return Script(procedure=procedure, variables=variables, needs=needs, **facts)


class _Hangs:
    """There is no session that a trial could lose."""

    def __init__(self) -> None:
        self.lost = anyio.Event()
        self.ended = False


class TrialAdmin(admin.CallAdmin):
    """`_self` of a trial; also tells what does not pass the script's line."""

    def __init__(
        self, facts: admin.RunFacts, *, state: messages.ActorState, tell: line_module.Tell
    ) -> None:
        super().__init__(facts, state=state)
        self._tell = tell
        self.info.on_taken = lambda message: tell(happenings.Got(message=message))

    async def record_error(self, path: Path, **facts: Any) -> str:
        text = await super().record_error(path, **facts)
        self._tell(happenings.Recorded(path=path, message=text))
        return text

    async def resolve_error(self, path: Path) -> bool:
        was_there = await super().resolve_error(path)
        if was_there:
            self._tell(happenings.Resolved(path=path))
        return was_there


class Trial:
    """One run; `admin` is its `_self` from the start.

    `line` is the script's to its ground, `desk` another one, for its error records. `load` imports
    what it requires, in a thread; `begins` is called right before the script is.
    """

    def __init__(
        self,
        script: Script,
        *,
        line: Client,
        desk: Client,
        tell: line_module.Tell,
        places: Places,
        state: messages.ActorState | None = None,
        load: Callable[[], None] | None = None,
        begins: Callable[[], None] | None = None,
        queue_limit: int = info_queue.LIMIT,
    ) -> None:
        self._script = script
        # Without stored modules there is nothing to load.
        self._load = load if script.needs.stored else None
        self._begins = begins
        self._tell = tell
        #: What `_client` is.
        self.client = script_client.ScriptClient(line.shared, writes.Binding(), session=_Hangs())
        settings = Config(runner=RunnerConfig(name=script.node, queue=queue_limit))
        self._config = script_config.view_of(
            settings, places, name=script.node, group=script.group, isolate="inline"
        )
        alone = messages.DetachedState(messages.GroupSeen(members=(script.node,), nodes=None))
        self.admin = TrialAdmin(
            admin.RunFacts(
                client=self.client,
                runner_client=desk,
                places=places,
                node=script.node,
                path=script.job,
                fence=FENCE,
                every_node=False,
                queue_limit=queue_limit,
                work_well=self._work_well,
            ),
            state=state or alone,
            tell=tell,
        )

    async def run(self) -> Any:
        """The script's result. Raises what the script does, see `execution.cause_of`."""
        load = self._load
        if load is not None:
            # It is called in a thread, which has no context of its own.
            context, given = contextvars.copy_context(), load
            load = lambda: context.run(given)  # noqa: E731
        call = readiness.Call(
            procedure=self._script.procedure,
            variables=self._script.variables,
            needs=self._script.needs,
        )
        return await execution.perform(
            call,
            self.admin,
            client=self.client,
            load=load,
            config=self._config,
            begins=self._begins,
        )

    async def _work_well(self) -> None:
        self._tell(happenings.WorksWell())
        await self.admin.resolve_error(self._script.job)
