"""What a person asks of a job, from any desk: where it is, enable, disable, restart.

Called by the command line. Everything is a change of the job's entry, by compare-and-set; whichever
runner has the job sees it. Nothing here talks to a runner.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from moat_kv import config, errors
from moat_kv.client.client import Client
from moat_kv.path import Path
from moat_kv_runner import roots
from moat_kv_runner.job import parse_spec


def job_path(places: config.Places, kind: str, group: Path, job: Path, *, node: str = "") -> Path:
    """Where a job's entry is. `kind` is `any`, `at` or `all`; `node` is for `at`."""
    return roots.ROOTS[kind].below(places.run, group, node) + job


def state_path(places: config.Places, kind: str, group: Path, job: Path, *, node: str = "") -> Path:
    """Where its state is; `node` is for `at` and `all`."""
    return roots.ROOTS[kind].state_below(places.state, group, node) + job


def claim_path(places: config.Places, kind: str, group: Path, job: Path, *, node: str = "") -> Path:
    """Where its claim is while a runner has it; `node` is for `at` and `all`."""
    return roots.ROOTS[kind].state_below(places.claim, group, node) + job


async def change(client: Client, path: Path, **attributes: Any) -> dict[str, Any]:
    """Set attributes of the job whose entry is at a path; None takes one away. Returns the value.

    Raises NotFound, and BadValue if the job would not be one afterwards.
    """
    while True:
        old = await client.get(path)
        stored = old.get("value")
        if not isinstance(stored, Mapping):
            raise errors.NotFound("job", str(path))
        new = {**stored, **attributes}
        new = {name: each for name, each in new.items() if each is not None}
        parse_spec(new)
        try:
            await client.set(path, new, expect=old.rev)
        except errors.Conflict:
            continue
        return new


async def enable(client: Client, path: Path) -> None:
    """Let the job run again. A run that was stopped by disabling begins anew at once."""
    await change(client, path, enabled=None)


async def disable(client: Client, path: Path) -> None:
    """Stop the job, and do not start it until it is enabled."""
    await change(client, path, enabled=False)


async def restart(client: Client, path: Path) -> None:
    """Stop the job if it runs, and start it now. A disabled one stays so."""
    now = time.time()
    await change(client, path, target=now, restart=now)
