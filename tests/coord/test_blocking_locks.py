"""The same locks from plain threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from moat_kv import P, blocking, coord, errors
from moat_kv.testing.server import RunningServer


@pytest.fixture(params=["asyncio", "trio"])
def process(served: RunningServer, request: pytest.FixtureRequest) -> Iterator[coord.Process]:
    with coord.Process(served.url, backend=request.param) as process:
        yield process


def test_threads_exclude_each_other(process: coord.Process) -> None:
    counter, inside = [0], []

    def work() -> None:
        for _ in range(10):
            with process.lock("me") as lock:
                inside.append(lock.fence)
                before = counter[0]
                process.client.set(P("x"), before, fence=lock.guard)
                counter[0] = before + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter == [40]
    assert inside == sorted(inside)


def test_a_lock_says_what_it_is(process: coord.Process) -> None:
    lock = process.lock("me", timeout_s=30)
    assert (lock.name, lock.held) == ("me", False)
    with lock:
        assert lock.held
        assert lock.guard == (lock.guard[0], lock.fence)
        with pytest.raises(coord.AlreadyLocked):
            process.lock("me", block=False).acquire()
        with pytest.raises(process.AlreadyLocked):
            process.lock("me").acquire(0.05)
        assert not lock.lost.is_set()
        assert not lock.lost.wait(0)
        process.client.delete(lock.guard[0])
        assert lock.lost.wait(30)
    with process.semaphore("pool", 2), process.semaphore("pool", 2):
        pass


def test_a_process_shares_a_client(served: RunningServer) -> None:
    with blocking.open_client(served.url, name="mine") as client:
        process = coord.Process(client)
        assert process.client is client
        assert not process.session.ended
        with process.lock("me", shared=True), coord.Process(client).lock("me", shared=True):
            assert len(process.id) == 16
        process.stop()
        process.stop()
        assert client.get(P("x")).rev == 0
        kept = coord.Process(client)
    kept.stop()


def test_nothing_is_left_of_a_process_that_could_not_connect() -> None:
    with pytest.raises(errors.CannotConnect):
        coord.Process("unix:///nowhere/at/all")
    assert "moat-kv coordination" not in [each.name for each in threading.enumerate()]
    with pytest.raises(LookupError):
        coord.Process("unix:///nowhere/at/all", backend="none of these")


@pytest.mark.anyio
async def test_it_refuses_to_stop_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        coord.Process()


def test_a_forgotten_process_does_not_keep_the_interpreter_and_lets_go(
    served: RunningServer, process: coord.Process
) -> None:
    words = (
        "from moat_kv.coord import Process; import sys; Process(sys.argv[1]).lock('me').acquire()"
    )
    subprocess.run([sys.executable, "-c", words, served.url], check=True, timeout=30)
    process.lock("me").acquire(0)


_FORKING = """
import os, sys
from moat_kv.coord import Process
with Process(sys.argv[1]) as process:
    lock = process.lock("me")
    lock.acquire()
    if os.fork() == 0:
        try:
            process.lock("you").acquire()
        except RuntimeError as exc:
            print(exc)
        sys.exit(0)
    os.wait()
    print(lock.held, process.lock("me", False).name)
"""


def test_a_process_does_not_go_along_into_a_fork_and_is_not_harmed_by_it(
    served: RunningServer,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKING, served.url],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "a client does not go along into a forked process; open one there",
        "True me",
    ]
