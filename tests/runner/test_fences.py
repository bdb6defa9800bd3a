"""What a job may still write when its claim has passed on: nothing, whatever it tries."""

from __future__ import annotations

import textwrap

import pytest

from moat_kv import P
from tests.runner.bench import bench

pytestmark = pytest.mark.anyio

#: Each by its name; `view` is an ordinary client on the line that the script was given.
WAYS = {
    "client": "_client.set(path, 1)",
    "self": "_self.set(path, 1)",
    "active": "active(path)",
    "view": "view.set(path, 1)",
    "delete": "view.delete(path)",
    "batch": "view.batch([view.op_set(path, 1)])",
    "patch": "view.patch(path, 'add', 1)",
    "tree": "view.delete_tree(path)",
    "raw": "view.request('set', {'path': path}, codec.pack(1))",
    "other-guard": "view.set(path, 1, guard=(path, before.rev))",
    "session": "in_session(path)",
}

SCRIPT = """
    import anyio
    from moat_kv import Client, codec, open_client
    view = Client(_client.shared)
    async def active(path):
        async with view.mirror(_P("made")) as root:
            await root.follow(path[1:], create=True).update(1)
    async def in_session(path):
        async with view.session() as session:
            await view.set(path, 1, session=session)
    before = await _client.set(_P("made"), 0)
    paths = {name: _P("made") / name for name in ways}
    for path in paths.values():
        await _client.set(path, 0)
    async with open_client(_client.shared.link.urls) as free:
        with anyio.CancelScope(shield=True):
            await _client.delete(claim)
            refused = {}
            for name, way in ways.items():
                try:
                    await eval(way, {**globals(), **locals(), "path": paths[name]})
                except Exception as exc:
                    refused[name] = type(exc).__name__
                else:
                    refused[name] = "not at all"
            await free.set(_P("refused"), refused)
"""


async def test_child_cannot_write_without_its_claim_whatever_it_makes_of_its_client() -> None:
    # Its runner ends it as soon as it sees the claim gone, and leaves it a tenth of the grace.
    async with bench("n1", isolate="process", ttl_s=300, grace_s=200) as b:
        data = {"ways": WAYS, "claim": b.claim_path()}
        text = textwrap.dedent(SCRIPT)
        await b.job(text, delay=1000, data=data)
        try:
            refused = await b.value(P("refused"))
        except AssertionError as exc:
            exc.add_note(str(await b.state(lambda state: True)))
            raise
        assert refused == {**dict.fromkeys(WAYS, "StaleFence"), "self": "LostClaim"}
        assert {await b.get(f"made.{name}") for name in WAYS} == {0}


SYNCHRONOUS = """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from moat_kv import blocking, Client, codec
    other = Client(_client.asynchronous.shared)
    def raw(path):
        _client.request('set', {'path': path}, codec.pack(1))
    def plain(path):
        _client.run(other.set, path, 1)
    ways = {"set": lambda path: _client.set(path, 1), "raw": raw, "plain": plain,
            "delete": _client.delete}
    paths = {name: _P("made") / name for name in ways}
    for path in paths.values():
        _client.set(path, 0)
    with blocking.open_client(_client.asynchronous.shared.link.urls) as free:
        free.delete(claim)
        refused = {}
        for name, way in ways.items():
            try:
                way(paths[name])
            except Exception as exc:
                refused[name] = type(exc).__name__
            else:
                refused[name] = "not at all"
        free.set(_P("refused"), refused)
"""


async def test_synchronous_script_that_goes_on_without_its_claim_cannot_write() -> None:
    # It does not heed that it is told to end, and is killed a tenth of the grace later.
    async with bench("n1", isolate="process", ttl_s=300, grace_s=200) as b:
        text = textwrap.dedent(SYNCHRONOUS)
        await b.job(text, is_async=None, delay=1000, data={"claim": b.claim_path()})
        refused = await b.value(P("refused"))
        names = ("set", "raw", "plain", "delete")
        assert refused == dict.fromkeys(names, "StaleFence")
        assert {await b.get(f"made.{name}") for name in names} == {0}
