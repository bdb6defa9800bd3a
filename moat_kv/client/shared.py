"""What a client and its bound views have in common; made by `opening`, used by `client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.abc

from moat_kv.client import groups, link, losses, session

if TYPE_CHECKING:
    from moat_kv.client import mirror
    from moat_kv.config import Config


class Shared:
    """One connection and all that hangs on it."""

    def __init__(
        self,
        link_: link.Link,
        config: Config,
        own_tasks: anyio.abc.TaskGroup,
        task_group: anyio.abc.TaskGroup,
    ) -> None:
        self.link = link_
        self.config = config
        #: Handlers of users, and hooks of mirrors; ends before the line does.
        self.task_group = task_group
        self.sessions = session.Sessions(link_, own_tasks)
        self.joins = groups.Joins(link_, self.sessions)
        self.losses = losses.Losses(link_)
        link_.restorers += [self.sessions, self.joins]
        #: Those made by `as_handler`, by class, path and binding.
        self.mirrors: dict[Any, mirror.ClientRoot] = {}
