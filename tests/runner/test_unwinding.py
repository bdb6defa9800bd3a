"""A signal that ends a synchronous script at any moment leaves its client in good order."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import anyio.from_thread
import pytest

from moat_kv import Client, P, blocking, open_client
from moat_kv.testing.server import running_server
from moat_kv_runner import execution
from moat_kv_runner.children import unwinding

ROUNDS = 40
LIMIT_S = 30


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[anyio.from_thread.BlockingPortal, Client]]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running_server()) as running,
        portal.wrap_async_context_manager(open_client(running.url)) as client,
    ):
        yield portal, client


def watched(client: blocking.Client) -> None:
    with client.watch(P("x")):
        pass


def in_session(client: blocking.Client) -> None:
    with client.session():
        pass


def mirrored(client: blocking.Client) -> None:
    with client.mirror(P("x")):
        pass


def rows_left_early(client: blocking.Client) -> None:
    client.get_tree(P("x"))


DOINGS: dict[str, Callable[[blocking.Client], object]] = {
    "call": lambda client: client.get(P("x")),
    "watch": watched,
    "session": in_session,
    "mirror": mirrored,
    "rows": rows_left_early,
}


def answered_in_time(client: blocking.Client) -> None:
    """A call is answered: nothing that the loop waits for is held by this thread."""

    def waits(start: Callable[[], futures.Future[object]]) -> object:
        return start().result(LIMIT_S)

    client._caller.waits = waits  # type: ignore[assignment]
    client.get(P("x"))


@pytest.mark.parametrize("doing", list(DOINGS.values()), ids=list(DOINGS))
def test_script_that_is_told_to_end_amid_its_client_can_use_it_on_its_way_out(
    doing: Callable[[blocking.Client], object],
    served: tuple[anyio.from_thread.BlockingPortal, Client],
) -> None:
    portal, client = served
    main, dice = threading.get_ident(), random.Random(7)
    at_rest, before = portal.call(tasks), signal.getsignal(signal.SIGUSR1)
    hook = sys.unraisablehook
    try:
        for _ in range(ROUNDS):
            told = unwinding.Unwinding()
            own = blocking.Client(portal, client, waits=told.wait)
            sys.unraisablehook = hook
            told.begin(signal.SIGUSR1)
            tell = threading.Timer(
                dice.uniform(0, 0.004), lambda: signal.pthread_kill(main, signal.SIGUSR1)
            )
            with pytest.raises(execution.Stopped):
                go_on(tell, lambda: doing(own))  # noqa: B023
            tell.join()
            answered_in_time(own)
    finally:
        signal.signal(signal.SIGUSR1, before)
        sys.unraisablehook = hook
    # What was cancelled is closed by and by.
    give_up_at = time.monotonic() + LIMIT_S
    while client.shared.mirrors or portal.call(tasks) > at_rest:
        assert time.monotonic() < give_up_at, f"{portal.call(tasks) - at_rest} were left behind"
        time.sleep(0.02)


def go_on(tell: threading.Thread, doing: Callable[[], object]) -> None:
    tell.start()
    while True:
        doing()


def tasks() -> int:
    return len(asyncio.all_tasks())
