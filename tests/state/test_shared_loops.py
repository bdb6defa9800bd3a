"""Models shared from event loops."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from moat_kv import P, blocking, open_client
from moat_kv.state import Models, SchemaTooNew, State, attach
from moat_kv.testing.server import RunningServer
from tests.state.models import Counter
from tests.state.sharing import PLACE, bump, load, n_of

pytestmark = pytest.mark.anyio


async def test_a_client_of_an_event_loop_is_attached(served: RunningServer, one: Models) -> None:
    await anyio.to_thread.run_sync(load, one)
    models = Models()
    async with open_client(served.url) as client, attach(client, within=models):
        async with State(within=models) as state:
            assert (await state.load(Counter(n=4))).n == 0
        async with State(Counter, within=models) as state:
            counter = state.checkout(Counter)
            counter.n += 1
            await state.commit(counter)
        # from threads, too, but not from the loop itself
        await anyio.to_thread.run_sync(bump, models)
        with pytest.raises(RuntimeError, match="use `async with`"):
            bump(models)
        assert n_of(models) == 2
    async with State(Counter, within=models) as state:
        await state.commit(state.checkout(Counter))
    assert n_of(models) == 2


async def test_a_model_of_another_loops_client_is_reached(one: Models) -> None:
    await anyio.to_thread.run_sync(load, one)
    async with State(Counter, within=one) as state:
        counter = state.checkout(Counter)
        counter.n = 5
        await state.commit(counter)
        counter.n = 6
        with anyio.CancelScope() as scope:
            scope.cancel()
            await state.commit(counter)
    assert n_of(one) in (5, 6)
    async with State(Counter, within=one, timeout_s=30):
        pass


async def test_a_url_is_attached_in_an_event_loop(served: RunningServer) -> None:
    models = Models()
    attachment = attach(served.url, within=models)
    async with attachment, State(within=models) as state:
        await state.load(Counter())
    assert models.sharings == ()


async def test_a_client_is_attached_once_and_let_go_of(served: RunningServer) -> None:
    models = Models()
    async with open_client(served.url) as client:
        attachment = attach(client, within=models)
        with pytest.raises(TypeError, match="async with"):
            attachment.__enter__()
        await attachment
        await attachment
        assert len(models.sharings) == 1
        await attachment.adetach()
        await attachment.adetach()
        assert not models.sharings


async def test_what_fails_while_attaching_leaves_nothing(
    served: RunningServer, client: blocking.Client
) -> None:
    models = Models()
    async with State(within=models) as state:
        await state.load(Counter())
    await anyio.to_thread.run_sync(
        lambda: client.set(PLACE + P("Counter"), {"state": {}, "version": 9, "by": "x"})
    )
    async with open_client(served.url) as inner:
        with pytest.raises(SchemaTooNew):
            await attach(inner, within=models)
    assert models.sharings == ()
    with pytest.raises(SchemaTooNew):
        await anyio.to_thread.run_sync(lambda: attach(client, within=models))
    assert models.sharings == ()
    async with State(Counter, within=models) as state:
        await state.commit(state.checkout(Counter))
