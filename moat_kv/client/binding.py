"""A line that is bound to a claim, on each further line too; made by `Client.bind_line`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from moat_kv import errors
from moat_kv.client import connection

if TYPE_CHECKING:
    from moat_kv.client import writes
    from moat_kv.client.link import Link

logger = logging.getLogger(__name__)


class LineBinding:
    """One of a link's restorers."""

    def __init__(self, fence: writes.Guard, token: str) -> None:
        self._arguments: dict[str, Any] = {"fence": list(fence), "token": token}

    async def tell(self, line: Link | connection.Connection) -> None:
        """Raises StaleFence."""
        await line.call("bind", self._arguments)

    async def restore(self, line: connection.Connection) -> None:
        try:
            await self.tell(line)
        except errors.StaleFence as exc:
            # Reading is allowed. Whoever has bound the line sends the fence with its writes, too.
            logger.info("this line cannot be bound any more: %s", exc)

    def interrupted(self) -> None:
        """Nothing is to be done."""
