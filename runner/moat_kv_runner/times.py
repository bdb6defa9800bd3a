"""How long what ends a run may take, checked before a runner takes a job. Pure.

`serving` asks for each of its sessions. A runner gives its session up, and with it its claims,
before the server can end it (`moat_kv.client.session.GIVE_UP`); its children have to be dead by
then, too. What is left between the two is the time to kill them, half of it for being late.
"""

from __future__ import annotations

from moat_kv import errors
from moat_kv.client import session

#: A keeper needs so long to end a child whose runner has told it to, with some room, in seconds.
KILL_LEAST_S = 0.04


def kill_s(ttl_s: float, grace_s: float) -> float:
    """How long children may take to end when their runner's session is lost, in seconds."""
    return (1 - session.GIVE_UP) * min(ttl_s, grace_s) / 2


def check(ttl_s: float | None, grace_s: float | None) -> None:
    """Whether a session with these times leaves enough for all that has to be done within it.

    None: not known yet. Raises BadConfig, which names the two that do not go together.
    """
    if ttl_s is not None and grace_s is not None and grace_s > ttl_s:
        _refuse("grace_s", grace_s, f"runner.ttl_s, {ttl_s:g} s: at most that")
    for name, each_s in (("grace_s", grace_s), ("ttl_s", ttl_s)):
        if each_s is not None and kill_s(each_s, each_s) < KILL_LEAST_S:
            least_s = KILL_LEAST_S / kill_s(1.0, 1.0)
            what = f"the time to kill a job's process, {KILL_LEAST_S:g} s"
            _refuse(name, each_s, f"{what}, a tenth of it: at least {least_s:g} s")


def _refuse(name: str, value_s: float, rule: str) -> None:
    raise errors.BadConfig(f"runner.{name}", f"{value_s:g} s does not go with {rule}")
