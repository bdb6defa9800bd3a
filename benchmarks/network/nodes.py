"""NATS, our servers on it, and a nats-py client of its own beside them.

The bare client publishes into a stream of its own on the same nodes, made with the settings of a
network's stream, and reads it with nats-py's own ordered consumer.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import nats
from nats.aio import client as nats_client
from nats.aio import msg as nats_msg
from nats.js import api as js_api
from nats.js import client as js_client

from benchmarks import entries, peers
from moat_kv.engine import nats_record, nats_subjects
from moat_kv.entry import Write
from moat_kv.testing import nats as testing_nats

NETWORK = "bench"
#: The bare stream, and what its subjects are below.
BARE = "bare"
#: So many records are on their way at a time while a stream is filled.
FILLING = 10_000
#: A node that is asked to lead a stream does so within this time, in seconds.
LEAD_S = 20.0


@contextlib.contextmanager
def nodes(
    place: peers.Place, replicas: int, *, sync: bool = True
) -> Iterator[Sequence[testing_nats.Node]]:
    """One NATS node, or a cluster of so many. They sync every message, unless one is told not to:
    then, where it is not the disk that is measured, filling it takes less long.
    """
    folder = place.new("nats")
    if replicas == 1:
        with testing_nats.server(folder, sync=sync) as node:
            yield [node]
    else:
        with testing_nats.cluster(replicas, folder) as several:
            yield several


def url(node: testing_nats.Node, network: str = NETWORK) -> str:
    """What one of our servers is given."""
    return f"nats://{node.address}/{network}"


class BareClient:
    """nats-py by itself: publishes what our server publishes, and sees it come."""

    def __init__(self, client: nats_client.Client) -> None:
        self._client = client
        self._js: js_client.JetStreamContext = client.jetstream(timeout=60)
        self._done = anyio.Event()
        self._missing = 0
        self._seen_at = 0.0

    async def publish(self, number: int) -> None:
        """One entry into the stream, acknowledged."""
        await self._js.publish(f"{BARE}.{_tokens(number)}", body(number))

    async def change(self, number: int, other: BareClient) -> float:
        """Publish one; how long it takes until `other`, which `listen`s, has it, in seconds."""
        other._await(1)
        began = time.perf_counter()
        await self.publish(number)
        await other._done.wait()
        return other._seen_at - began

    async def listen(self) -> None:
        """See what comes from now on."""
        await self._js.subscribe(
            f"{BARE}.>",
            cb=self._came,
            ordered_consumer=True,
            deliver_policy=js_api.DeliverPolicy.NEW,
        )

    async def read_all(self, network: str, count: int) -> None:
        """Read the newest message of each of so many entries of a network."""
        self._await(count)
        subscription = await self._js.subscribe(
            f"{nats_subjects.Names(network).root}.>",
            cb=self._came,
            ordered_consumer=True,
            deliver_policy=js_api.DeliverPolicy.LAST_PER_SUBJECT,
            pending_msgs_limit=-1,
            pending_bytes_limit=-1,
        )
        await self._done.wait()
        await subscription.unsubscribe()

    async def fill(self, network: str, count: int) -> None:
        """Put so many entries into a network that is there, as one of its servers would."""
        names = nats_subjects.Names(network)
        js = self._client.jetstream(publish_async_max_pending=2 * FILLING, timeout=120)
        for start in range(0, count, FILLING):
            for number in range(start, min(start + FILLING, count)):
                await js.publish_async(names.subject(entries.path(number)), body(number))
            await js.publish_async_completed()

    def _await(self, count: int) -> None:
        self._missing, self._done = count, anyio.Event()

    async def _came(self, _message: nats_msg.Msg) -> None:
        self._missing -= 1
        if not self._missing:
            self._seen_at = time.perf_counter()
            self._done.set()

    async def make_stream(self, replicas: int) -> None:
        """The bare stream, with the settings of a network's that cost something."""
        await self._js.add_stream(
            js_api.StreamConfig(
                name=BARE,
                subjects=[f"{BARE}.>"],
                num_replicas=replicas,
                max_msgs_per_subject=10,
                storage=js_api.StorageType.FILE,
                duplicate_window=120,
            )
        )

    async def have_lead(self, stream: str, node: testing_nats.Node) -> None:
        """Let a node of a cluster lead a stream. Raises TimeoutError."""
        asked = json.dumps({"placement": {"preferred": node.name}}).encode()
        with anyio.fail_after(LEAD_S):
            while True:
                info = await self._client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
                if json.loads(info.data)["cluster"].get("leader") == node.name:
                    return
                stepdown = f"$JS.API.STREAM.LEADER.STEPDOWN.{stream}"
                await self._client.request(stepdown, asked, timeout=5)
                await anyio.sleep(0.5)  # a new leader is chosen


def _tokens(number: int) -> str:
    return ".".join([str(element) for element in entries.path(number)])


def body(number: int) -> bytes:
    """What our server would publish for an entry."""
    write = Write(entries.path(number), entries.PACKED, origin="bench:00000000", tick=number)
    return nats_record.body(write, 0)


@asynccontextmanager
async def bare_client(node: testing_nats.Node) -> AsyncIterator[BareClient]:
    """A client on one node."""
    client = await nats.connect(f"nats://{node.address}")
    try:
        yield BareClient(client)
    finally:
        await client.close()
        # nats-py leaves the socket to whoever takes what is unsent.
        writer = getattr(client._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
            await anyio.lowlevel.checkpoint()
