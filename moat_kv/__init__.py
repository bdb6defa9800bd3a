"""A tree of values that the nodes of a small fleet share: `import moat_kv` is the core.

`async with open_client() as client: await client.set(P("a.b"), 1)`; see `docs/` and `README.md`.
"""

from moat_kv import errors
from moat_kv.client.active import ClientEntry
from moat_kv.client.client import Client
from moat_kv.client.mirror import ClientRoot
from moat_kv.client.opening import open_client
from moat_kv.client.results import (
    Chain,
    Listed,
    Mark,
    MemberInfo,
    Members,
    Message,
    Ready,
    Reset,
    Result,
    WatchEvent,
)
from moat_kv.client.session import Session
from moat_kv.notgiven import NotGiven, NotGivenType
from moat_kv.path import P, Path
from moat_kv.version import VERSION as __version__

__all__ = [
    "Chain",
    "Client",
    "ClientEntry",
    "ClientRoot",
    "Listed",
    "Mark",
    "MemberInfo",
    "Members",
    "Message",
    "NotGiven",
    "NotGivenType",
    "P",
    "Path",
    "Ready",
    "Reset",
    "Result",
    "Session",
    "WatchEvent",
    "__version__",
    "errors",
    "open_client",
]
