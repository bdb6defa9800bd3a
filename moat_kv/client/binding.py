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
            # It is bound to what was once: it may read, and all that it writes is refused.
            logger.info("this line can only read: %s", exc)

    def interrupted(self) -> None:
        """Nothing is to be done."""
