"""The client for plain scripts: the same calls, blocking.

    with moat_kv.blocking.open_client() as client:
        client.set(P("a.b"), 1)

An event loop runs in a thread of its own (anyio's blocking portal), with an ordinary client in it;
each call here is that client's call, waited for. There is no second copy of anything: arguments,
results and errors are those of `moat_kv.Client`. May be used from any number of threads, but not
from within an event loop, which it would stop: that raises RuntimeError.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio.from_thread

from moat_kv import calling
from moat_kv.calling import BlockingIterator, Caller, Waits, refuse_event_loop, wait
from moat_kv.client import client as client_module
from moat_kv.client import hashes, lost, opening, results, streams, writes
from moat_kv.client import mirror as mirror_module
from moat_kv.client import session as session_module
from moat_kv.client import watch as watch_module
from moat_kv.path import Path

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from moat_kv.client.reading import Results
    from moat_kv.config import Config
    from moat_kv.proto import messages

__all__ = [
    "Client",
    "Rows",
    "Session",
    "Waits",
    "Watch",
    "open_client",
    "refuse_event_loop",
    "wait",
]

_T = TypeVar("_T")
_R = TypeVar("_R", bound=mirror_module.ClientRoot)


@contextmanager
def open_client(
    url: str | Sequence[str] | None = None,
    *,
    name: str | None = None,
    config: Config | None = None,
    connect_timeout_s: float | None = None,
    request_timeout_s: float | None = None,
    reconnect: bool = True,
    wait: bool = False,
    backend: str = "asyncio",
) -> Iterator[Client]:
    """Connect to a server. Arguments and errors as for `moat_kv.open_client`.

    `backend`: the event loop in the thread, `asyncio` or `trio`.
    """
    refuse_event_loop()
    with anyio.from_thread.start_blocking_portal(backend) as portal:
        opened = Caller(portal, calling.wait).held(
            opening.open_client,
            url,
            name=name,
            config=config,
            connect_timeout_s=connect_timeout_s,
            request_timeout_s=request_timeout_s,
            reconnect=reconnect,
            wait=wait,
        )
        with opened as client:
            yield Client(portal, client)


class Rows(BlockingIterator[_T]):
    """Rows of `get_tree`. Leaving the loop early: `close`, or drop it."""

    _source: streams.Rows[_T]

    def close(self) -> None:
        """Stop the server from sending the rest."""
        self._caller.call(self._source.aclose)
        self._waiting = []

    def __del__(self) -> None:
        # The source notices by itself only in the loop's thread.
        if not self._source.closed:
            self._caller.call_soon(self._source.aclose)


class Watch(BlockingIterator[watch_module.Event]):
    """`with client.watch(path) as w: for event in w`; see `moat_kv.client.watch.Watch`."""

    _source: watch_module.Watch

    @property
    def since(self) -> results.Mark | None:
        """Everything up to here was handed out."""
        return self._source.since


class Session:
    """`with client.session() as s`; see `moat_kv.Session`."""

    def __init__(self, caller: Caller, session: session_module.Session) -> None:
        self._caller = caller
        self._session = session

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def ttl_s(self) -> float:
        return self._session.ttl_s

    @property
    def grace_s(self) -> float:
        return self._session.grace_s

    @property
    def ended(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self._session.ended

    @property
    def lost(self) -> bool:
        """Whether it has ended without being closed."""
        return self._session.lost.is_set()

    def wait_lost(self) -> None:
        """Block until it has ended without being closed."""
        self._caller.call(self._session.lost.wait)


def _session(session: Session | session_module.Session | str | None) -> Any:
    return session._session if isinstance(session, Session) else session


def _options(options: dict[str, Any]) -> dict[str, Any]:
    if "session" in options:
        options["session"] = _session(options["session"])
    return options


class Client:
    """`moat_kv.Client`, blocking. Options, results and errors are documented there.

    `waits`: for who has to know of each call while it is waited for.
    """

    def __init__(
        self, portal: BlockingPortal, client: client_module.Client, *, waits: Waits = wait
    ) -> None:
        self._caller = Caller(portal, waits)
        self._waits = waits
        self._portal = portal
        self._client = client

    @property
    def name(self) -> str:
        return self._client.name

    @property
    def config(self) -> Config:
        return self._client.config

    @property
    def server(self) -> results.ServerInfo:
        return self._client.server

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def closed(self) -> bool:
        return self._client.closed

    @property
    def kept_writes(self) -> int:
        return self._client.kept_writes

    @property
    def asynchronous(self) -> client_module.Client:
        """The client in the loop, for `run`."""
        return self._client

    def run(self, function: Callable[..., Awaitable[_T]], *args: Any, **kwargs: Any) -> _T:
        """Call any async function in the client's loop, such as a mirror entry's `update`."""
        return self._caller.call(function, *args, **kwargs)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Have a plain function called in the client's loop, without waiting for that.

        Not at all if the loop is at its end.
        """

        async def call() -> None:
            function()

        self._caller.call_soon(call)

    def bound(
        self,
        *,
        fence: writes.Guard | None = None,
        session: Session | session_module.Session | str | None = None,
    ) -> Client:
        """A view whose every write carries this fence or session."""
        bound = self._client.bound(fence=fence, session=_session(session))
        return Client(self._portal, bound, waits=self._waits)

    def bind_line(self, fence: writes.Guard, token: str) -> None:
        self._caller.call(self._client.bind_line, fence, token)

    # Reading ------------------------------------------------------------------------------------

    def get(self, path: Path, *, strict: bool = False) -> results.Result:
        return self._caller.call(self._client.get, path, strict=strict)

    def get_tree(
        self, path: Path, *, min_depth: int = 0, max_depth: int = -1
    ) -> Rows[results.Result]:
        source = self._caller.call_sync(
            self._client.get_tree, path, min_depth=min_depth, max_depth=max_depth
        )
        return Rows(self._caller, source)

    def list(self, path: Path) -> list[results.Listed]:
        return self._caller.call(self._client.list, path)

    def history(self, path: Path, *, limit: int = 20, before: int | None = None) -> Results:
        return self._caller.call(self._client.history, path, limit=limit, before=before)

    def hash(self, path: Path, **options: Any) -> hashes.SubtreeHash:
        return self._caller.call(self._client.hash, path, **options)

    @contextmanager
    def watch(self, path: Path, **options: Any) -> Iterator[Watch]:
        with self._caller.held(self._client.watch, path, **options) as source:
            yield Watch(self._caller, source)

    @overload
    def mirror(self, path: Path) -> AbstractContextManager[mirror_module.ClientRoot]: ...
    @overload
    def mirror(self, path: Path, cls: type[_R]) -> AbstractContextManager[_R]: ...
    def mirror(self, path: Path, cls: Any = None) -> Any:
        """The mirror's entries are read from here directly; `run` their async methods."""
        return self._caller.held(self._client.mirror, path, cls or mirror_module.ClientRoot)

    def state(self) -> dict[str, Any]:
        return self._caller.call(self._client.state)

    def ping(self) -> float:
        return self._caller.call(self._client.ping)

    # Writing ------------------------------------------------------------------------------------

    def set(self, path: Path, value: Any, **options: Any) -> results.Result:
        return self._caller.call(self._client.set, path, value, **_options(options))

    def delete(self, path: Path, **options: Any) -> results.Result:
        return self._caller.call(self._client.delete, path, **_options(options))

    def delete_tree(self, path: Path, *, min_depth: int = 0, max_depth: int = -1) -> int:
        return self._caller.call(
            self._client.delete_tree, path, min_depth=min_depth, max_depth=max_depth
        )

    def op_set(self, path: Path, value: Any, **options: Any) -> writes.WriteOp:
        return self._client.op_set(path, value, **_options(options))

    def op_delete(self, path: Path, **options: Any) -> writes.WriteOp:
        return self._client.op_delete(path, **_options(options))

    def batch(self, ops: Sequence[writes.WriteOp]) -> Results:
        return self._caller.call(self._client.batch, ops)

    def patch(self, path: Path, op: str, operand: Any, **options: Any) -> results.Result:
        return self._caller.call(self._client.patch, path, op, operand, **_options(options))

    # Messages, sessions, groups -----------------------------------------------------------------

    def send(self, topic: Path, *value: Any, raw: bytes | None = None) -> None:
        self._caller.call(self._client.send, topic, *value, raw=raw)

    @contextmanager
    def monitor(self, topic: Path, **options: Any) -> Iterator[Iterator[results.Message]]:
        with self._caller.held(self._client.monitor, topic, **options) as source:
            yield BlockingIterator[results.Message](self._caller, source)

    @contextmanager
    def conflicts(self) -> Iterator[Iterator[lost.LostWrite]]:
        with self._caller.held(self._client.conflicts) as source:
            yield BlockingIterator[lost.LostWrite](self._caller, source)

    @contextmanager
    def session(
        self, *, ttl_s: float | None = None, grace_s: float | None = None
    ) -> Iterator[Session]:
        with self._caller.held(self._client.session, ttl_s=ttl_s, grace_s=grace_s) as source:
            yield Session(self._caller, source)

    def join(self, group: Path, name: str, **options: Any) -> None:
        self._caller.call(self._client.join, group, name, **_options(options))

    def leave(self, group: Path, name: str, role: str = "member") -> None:
        self._caller.call(self._client.leave, group, name, role)

    @contextmanager
    def watch_group(self, group: Path) -> Iterator[Iterator[results.Members | None]]:
        with self._caller.held(self._client.watch_group, group) as source:
            yield BlockingIterator[results.Members | None](self._caller, source)

    def request(
        self, action: str, arguments: dict[str, Any], value: bytes | None = None, **options: Any
    ) -> messages.Reply:
        return self._caller.call(self._client.request, action, arguments, value, **options)
