"""etcd and Redis beside us, where they are installed: their servers, and their best Python clients.

etcd through aetcd, Redis through redis-py. What is missing is named in the report (`missing`), and
does not take part. Both sync each write to the disk before they answer, as NATS does here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.abc

from benchmarks import entries, peers
from moat_kv.testing import ports as free_ports

#: How long either may take until it can be used, in seconds.
START_S = 20.0
_LOOK_S = 0.05


class Etcd:
    """A client of aetcd's, and another one that watches on another node."""

    def __init__(self, client: Any, other: Any) -> None:
        self._client = client
        self._other = other
        self._seen = anyio.Event()
        self._seen_at = 0.0

    async def set(self, number: int) -> None:
        await self._client.put(_key(number), entries.PACKED)

    async def change(self, number: int) -> float:
        """Set an entry; how long it takes until the other node's watcher has it, in seconds."""
        self._seen = anyio.Event()
        began = time.perf_counter()
        await self.set(number)
        await self._seen.wait()
        return self._seen_at - began

    async def watch(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """See what comes, until cancelled."""
        changes = await self._other.watch_prefix(str(entries.BASE).encode())
        task_status.started()
        async for _ in changes:
            self._seen_at = time.perf_counter()
            self._seen.set()


class Redis:
    """A client of redis-py's."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def set(self, number: int) -> None:
        await self._client.set(_key(number), entries.PACKED)


def _key(number: int) -> bytes:
    return str(entries.path(number)).encode()


def missing() -> list[str]:
    """What does not take part here, and why, for people."""
    found = []
    if shutil.which("etcd") is None:
        found.append("etcd (Debian: apt-get install etcd-server)")
    if importlib.util.find_spec("aetcd") is None:
        found.append("etcd's client aetcd (pip install aetcd)")
    if shutil.which("redis-server") is None:
        found.append("Redis (Debian: apt-get install redis-server)")
    if importlib.util.find_spec("redis") is None:
        found.append("Redis's client redis-py (pip install redis)")
    return found


def versions() -> dict[str, str]:
    """Of whoever takes part: `etcd`, `aetcd`, `redis-py` (Redis itself: `machine.facts`)."""
    found = {}
    if (program := shutil.which("etcd")) is not None:
        done = subprocess.run([program, "--version"], capture_output=True, check=True, text=True)
        found["etcd"] = done.stdout.split()[2]
    for package, name in (("aetcd", "aetcd"), ("redis", "redis-py")):
        if importlib.util.find_spec(package) is not None:
            found[name] = importlib.metadata.version(package)
    return found


@asynccontextmanager
async def etcd(place: peers.Place, size: int) -> AsyncIterator[Etcd | None]:
    """etcd of so many nodes, the client on the first and the watcher on the last of them."""
    program = shutil.which("etcd")
    if program is None or importlib.util.find_spec("aetcd") is None:
        yield None
        return
    aetcd = importlib.import_module("aetcd")
    names = [f"e{number}" for number in range(size)]
    ports = [free_ports.free(2) for _ in names]
    urls = [f"http://127.0.0.1:{peer}" for _, peer in ports]
    cluster = ",".join(f"{name}={url}" for name, url in zip(names, urls, strict=True))
    with ExitStack() as running:
        for name, (port, _), url in zip(names, ports, urls, strict=True):
            command = [program, "--name", name, "--data-dir", str(place.new("etcd"))]
            for option in ("--listen-client-urls", "--advertise-client-urls"):
                command += [option, f"http://127.0.0.1:{port}"]
            command += ["--listen-peer-urls", url, "--initial-advertise-peer-urls", url]
            command += ["--initial-cluster", cluster, "--log-level", "panic"]
            running.enter_context(peers.process(command, stderr=subprocess.DEVNULL))
        async with AsyncExitStack() as stack:
            clients = []
            for port in (ports[0][0], ports[-1][0]):
                client = aetcd.Client(host="127.0.0.1", port=port, timeout=10)
                stack.push_async_callback(client.close)
                await _until(lambda client=client: client.get(b"x"))
                clients.append(client)
            yield Etcd(*clients)


@asynccontextmanager
async def redis(place: peers.Place) -> AsyncIterator[Redis | None]:
    """Redis that syncs each write."""
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("redis") is None:
        yield None
        return
    module = importlib.import_module("redis.asyncio")
    folder, port = place.new("redis"), free_ports.free_port()
    folder.mkdir()
    command = [program, "--dir", str(folder), "--bind", "127.0.0.1", "--port", str(port)]
    command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    command += ["--logfile", "redis.log"]
    with peers.process(command):
        # One line as everybody here has one: the pool would open one for each call under way.
        pool = module.BlockingConnectionPool(host="127.0.0.1", port=port, timeout=None)
        async with module.Redis.from_pool(pool) as client:
            await _until(client.ping)
            yield Redis(client)


async def _until(call: Callable[[], Awaitable[Any]]) -> None:
    """Call it until it is answered."""
    with anyio.fail_after(START_S):
        while True:
            try:
                await call()
                return
            except Exception:  # whatever such a client raises while nobody is there yet
                await anyio.sleep(_LOOK_S)
