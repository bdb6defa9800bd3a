"""Shared models when answers get lost, locks pass on, and servers are cut off."""

from __future__ import annotations

import pathlib
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from moat_kv import Client, P, errors, open_client
from moat_kv.client import results
from moat_kv.state import (
    Detached,
    Models,
    StaleFence,
    StaleModel,
    State,
    StateModel,
    Unknown,
    attach,
)
from moat_kv.state import shared_entry as shared_entry_module
from moat_kv.state.shared_entry import SharedEntry
from moat_kv.testing.server import running_server
from tests.client import waiting
from tests.server.sites import Site, site
from tests.state.models import Counter
from tests.state.sharing import n_of

pytestmark = pytest.mark.anyio

PATH = P(":.moat.kv.model.Counter")


class Flaky:
    """A client that does something else in the place of its next writes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: How long a lost answer is asked after is here; a test may set another one.
        self.shared: Any = client.shared
        self.instead: list[Callable[..., Awaitable[results.Result]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def set(self, *args: Any, **kwargs: Any) -> results.Result:
        if self.instead:
            return await self.instead.pop(0)(*args, **kwargs)
        return await self._client.set(*args, **kwargs)

    async def done_but_lost(self, *args: Any, **kwargs: Any) -> results.Result:
        await self._client.set(*args, **kwargs)
        raise errors.Unknown("the line broke", line_broke=True)

    async def lost(self, *args: Any, **kwargs: Any) -> results.Result:
        raise errors.Unknown("the line broke", line_broke=True)

    async def no_line(self, *args: Any, **kwargs: Any) -> results.Result:
        raise errors.Disconnected("no line")

    async def done_lost_and_overtaken(self, path: Any, value: Any, **kwargs: Any) -> results.Result:
        written = await self._client.set(path, value, **kwargs)
        await self.by_another(path, value, expect=written.rev)
        raise errors.Unknown("the line broke", line_broke=True)

    async def lost_and_overtaken(self, path: Any, value: Any, **kwargs: Any) -> results.Result:
        await self.by_another(path, value, expect=kwargs["expect"])
        raise errors.Unknown("the line broke", line_broke=True)

    async def by_another(self, path: Any, value: Any, **kwargs: Any) -> None:
        state = {**value["state"], "n": value["state"]["n"] + 10}
        await self._client.set(path, {**value, "state": state, "by": "another"}, **kwargs)


@asynccontextmanager
async def flaky_model() -> AsyncIterator[tuple[Models, Flaky]]:
    models = Models()
    async with (
        running_server() as server,
        open_client(server.url) as client,
        attach(client, within=models),
    ):
        async with State(within=models) as state:
            await state.load(Counter())
        entry = models.find(Counter).entry
        assert entry is not None
        flaky = Flaky(client)
        entry._client = flaky  # type: ignore[assignment]
        yield models, flaky


async def add_one(models: Models, *, force: bool = False) -> None:
    async with State(Counter, within=models) as state:
        counter = state.checkout(Counter)
        counter.n += 1
        await state.commit(counter, force=force)


def one_more(models: Models) -> Counter:
    """A copy that counts one more."""
    counter = State(within=models).checkout(Counter)
    counter.n += 1
    return counter


async def commit(models: Models, counter: Counter, *, force: bool = False) -> None:
    """Without a lock."""
    async with State(within=models) as state:
        await state.commit(counter, force=force)


async def stored_n(flaky: Flaky) -> int:
    n: int = (await flaky.get(PATH)).value.state.n
    return n


@pytest.mark.parametrize("force", [False, True], ids=["", "forced"])
@pytest.mark.parametrize(
    "what",
    [
        ["done_but_lost"],
        ["lost"],
        ["lost", "lost"],
        ["lost", "no_line"],
        ["lost", "done_but_lost"],
    ],
    ids=",".join,
)
async def test_a_commit_whose_answer_got_lost_happens_once(what: list[str], force: bool) -> None:
    async with flaky_model() as (models, flaky):
        flaky.instead = [getattr(flaky, name) for name in what]
        await add_one(models, force=force)
        assert n_of(models) == 1
        await add_one(models)
        assert await stored_n(flaky) == 2


async def test_one_that_happened_and_was_overtaken_has_happened() -> None:
    async with flaky_model() as (models, flaky):
        counter = one_more(models)
        flaky.instead = [flaky.done_lost_and_overtaken]
        await commit(models, counter)
        assert n_of(models) == 11


async def test_what_was_written_past_the_models_does_not_hide_a_commit() -> None:
    async with flaky_model() as (models, flaky):
        counter = one_more(models)

        async def done_lost_and_spoilt(path: Any, value: Any, **kwargs: Any) -> results.Result:
            await flaky._client.set(path, value, **kwargs)
            await flaky._client.set(path, 5)
            await flaky._client.set(path, {**value, "by": "another"})
            raise errors.Unknown("the line broke", line_broke=True)

        flaky.instead = [done_lost_and_spoilt]
        await commit(models, counter)
        assert n_of(models) == 1


async def test_one_that_was_overtaken_before_it_happened_is_stale() -> None:
    async with flaky_model() as (models, flaky):
        counter = one_more(models)
        flaky.instead = [flaky.lost_and_overtaken]
        with pytest.raises(StaleModel):
            await commit(models, counter)
        assert n_of(models) == 11


async def test_forced_it_is_made_again_on_top() -> None:
    async with flaky_model() as (models, flaky):
        counter = one_more(models)

        async def overtaken(path: Any, value: Any, **kwargs: Any) -> results.Result:
            await flaky.by_another(path, value)
            raise errors.Unknown("the line broke", line_broke=True)

        flaky.instead = [overtaken]
        await commit(models, counter, force=True)
        assert await stored_n(flaky) == 1


async def test_what_cannot_be_found_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_entry_module, "HISTORY", 1)
    async with flaky_model() as (models, flaky):
        counter = one_more(models)
        flaky.instead = [flaky.done_lost_and_overtaken]
        with pytest.raises(Unknown):
            await commit(models, counter)
        # The runtime state is the present one all the same.
        assert n_of(models) == 11


@pytest.mark.parametrize("error", [errors.Detached("x"), errors.Disconnected("x")], ids=repr)
async def test_nor_if_nobody_can_be_asked(
    error: errors.MoatKvError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_entry_module, "AGAIN_S", 0.01)
    async with flaky_model() as (models, flaky):

        async def refuse(*args: Any, **kwargs: Any) -> results.Result:
            raise error

        counter = one_more(models)
        flaky.shared = types.SimpleNamespace(link=types.SimpleNamespace(request_timeout_s=0.05))
        flaky.instead = [flaky.done_but_lost]
        flaky.get = refuse  # type: ignore[attr-defined]
        with pytest.raises(Unknown):
            await commit(models, counter)
        # The watch had told of it while the answer was waited for, or does so now.
        await waiting.until(lambda: n_of(models) == 1)


async def test_without_a_line_it_is_detached() -> None:
    async with flaky_model() as (models, flaky):
        counter = State(within=models).checkout(Counter)
        flaky.instead = [flaky.no_line]
        with pytest.raises(Detached):
            await commit(models, counter)

        async def refuse(*args: Any, **kwargs: Any) -> results.Result:
            raise errors.Disconnected("no line")

        flaky.get = refuse  # type: ignore[attr-defined]
        with pytest.raises(Detached):
            await add_one(models)
        async with State(within=models) as state:
            with pytest.raises(Detached):
                await state.load(Counter())


async def test_who_loads_at_the_same_time_has_what_the_other_has_made() -> None:
    async with flaky_model() as (models, flaky):
        entry = models.find(Counter).entry
        assert entry is not None
        await flaky.delete(PATH)
        flaky.instead = [flaky.done_but_lost]
        async with State(within=models) as state:
            await state.load(Counter())
        assert not flaky.instead


async def test_what_was_told_before_the_answer_is_taken_if_that_fails() -> None:
    async with flaky_model() as (models, flaky):
        entry = models.find(Counter).entry
        assert entry is not None

        async def told_then_refused(path: Any, value: Any, **kwargs: Any) -> results.Result:
            await flaky._client.set(path, value, **kwargs)
            entry.follow(await flaky._client.get(path))
            raise errors.StorageFailed("file", "reason")

        counter = one_more(models)
        flaky.instead = [told_then_refused]
        with pytest.raises(errors.StorageFailed):
            await commit(models, counter)
        assert n_of(models) == 1


async def test_under_a_lock_that_has_passed_on_nothing_is_committed() -> None:
    async with flaky_model() as (models, flaky):
        async with State(Counter, within=models) as state:
            await flaky.delete_tree(P(":.moat.kv.lock"))
            counter = state.checkout(Counter)
            counter.n += 1
            with pytest.raises(StaleFence):
                await state.commit(counter)
        await add_one(models)
        assert await stored_n(flaky) == 1


class Loose(StateModel):
    offline = True
    n: int = 0


@asynccontextmanager
async def cut_off(tmp_path: pathlib.Path) -> AsyncIterator[tuple[Site, Models, Models]]:
    """Two processes at one server that can be cut off."""
    one, other = Models(), Models()
    async with site(tmp_path) as here, open_client(here.url) as client:
        async with attach(here.client, within=one), attach(client, within=other):
            for models in (one, other):
                async with State(within=models) as state:
                    await state.load(Counter())
                    await state.load(Loose())
            yield here, one, other


async def test_cut_off_a_commit_is_refused_and_reading_goes_on(tmp_path: pathlib.Path) -> None:
    async with cut_off(tmp_path) as (here, one, _other):
        await add_one(one)
        here.remote.cut()
        counter = State(within=one).checkout(Counter)
        assert counter.n == 1
        async with State(within=one) as state:
            with pytest.raises(Detached):
                await state.commit(counter)
        with pytest.raises(Detached):
            await add_one(one)
        here.remote.heal()
        await here.settled()
        await add_one(one)


async def test_what_is_offline_goes_through_the_outbox(tmp_path: pathlib.Path) -> None:
    def n_of(models: Models) -> int:
        return State(within=models).checkout(Loose).n

    async def put(models: Models, n: int) -> None:
        async with State(Loose, within=models) as state:
            loose = state.checkout(Loose)
            loose.n = n
            await state.commit(loose)

    async with cut_off(tmp_path) as (here, one, other):
        here.remote.cut()
        for n in (1, 2, 3):
            await put(one, n)
        assert n_of(one) == 3
        await waiting.until(lambda: n_of(other) == 3)
        await put(other, 4)
        await waiting.until(lambda: n_of(one) == 4)
        here.remote.heal()
        await here.settled()
        await put(one, 5)
        await waiting.until(lambda: n_of(other) == 5)
        # One that is later in the network wins after the heal.
        here.remote.cut()
        await put(one, 6)
        here.log.now += 5
        value = {"state": {"id": "x", "n": 7}, "version": 1, "by": "elsewhere"}
        here.elsewhere(":.moat.kv.model.Loose", value)
        here.remote.heal()
        await waiting.until(lambda: n_of(one) == n_of(other) == 7)


async def test_a_plain_commit_whose_answer_got_lost_is_unknown() -> None:
    models = Models()
    async with running_server() as server, open_client(server.url) as client:
        async with attach(client, within=models), State(within=models) as state:
            await state.load(Loose())
            entry = models.find(Loose).entry
            assert entry is not None
            flaky = Flaky(client)
            entry._client = flaky  # type: ignore[assignment]
            flaky.instead = [flaky.lost]
            with pytest.raises(Unknown):
                await state.commit(state.checkout(Loose))


async def test_an_event_of_before_a_commit_changes_nothing() -> None:
    async with flaky_model() as (models, flaky):
        entry = models.find(Counter).entry
        assert isinstance(entry, SharedEntry)
        before = await flaky.get(PATH)
        await add_one(models)
        entry.follow(before)
        assert n_of(models) == 1
        # one that is overtaken while it is read
        late = await flaky.get(PATH)
        late.rev += 1
        late.value["by"] = "late"
        late.value["state"]["n"] = 99
        slot = models.find(Counter)
        is_news, answers = entry._is_news, [True, False]
        entry._is_news = lambda found, by: answers.pop(0)  # type: ignore[method-assign]
        entry.follow(late)
        entry._is_news = is_news  # type: ignore[method-assign]
        assert slot.copy().n == 1
