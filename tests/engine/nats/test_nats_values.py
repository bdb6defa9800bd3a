"""Paths as subjects, records as bodies, the engine's URL: pure values, there and back."""

from __future__ import annotations

import pathlib
import re

import hypothesis
import pytest

from moat_kv import config, errors
from moat_kv.engine import nats_record, nats_settings, nats_subjects
from moat_kv.entry import Record, Write
from moat_kv.path import P, Path
from tests.engine.nats import operator_mode
from tests.values import strategies

NAMES = nats_subjects.Names("house")


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        (Path(), "moat.house.kv"),
        (P("one.two-3_x/y"), "moat.house.kv.one.two-3_x/y"),
        (Path("a b", "=", "*", ">", "."), "moat.house.kv.a=20b.=3D.=2A.=3E.=2E"),
        (Path("ü", ""), "moat.house.kv.=C3=BC.=-"),
        (Path(3, -3, 0), "moat.house.kv.=i3.=i-3.=i0"),
        (Path(None, True, 1.5), "moat.house.kv.=xc0.=xc3.=xcb3ff8000000000000"),
        (Path(b"a", ("t", 1)), "moat.house.kv.=xc40161.=x92a17401"),
        (Path("-", "=-"), "moat.house.kv.-.=3D-"),
    ],
    ids=["root", "plain", "special", "unicode", "integers", "others", "compound", "dashes"],
)
def test_a_path_is_a_subject_that_can_be_read(path: Path, subject: str) -> None:
    assert NAMES.subject(path) == subject
    assert NAMES.path(subject) == path


@hypothesis.given(strategies.paths())
def test_every_path_has_one_subject_and_comes_back(path: Path) -> None:
    subject = NAMES.subject(path)
    assert re.fullmatch(r"[A-Za-z0-9_/=.-]+", subject)
    assert ".." not in subject
    assert len(subject) < 3_500
    assert NAMES.path(subject) == path
    topic = NAMES.message(path)
    assert topic != subject
    assert NAMES.topic(topic) == path


@pytest.mark.parametrize(
    "subject",
    ["moat.house.kv.=iX", "moat.house.kv.=xZZ", "moat.house.kv.=xc1", "moat.house.kv.=C3"],
    ids=["integer", "hex", "msgpack", "utf-8"],
)
def test_a_subject_that_is_no_paths_is_refused(subject: str) -> None:
    with pytest.raises(errors.BadPath):
        NAMES.path(subject)


def test_other_subjects_are_no_entries() -> None:
    assert [NAMES.path(each) for each in (NAMES.floor, NAMES.guard, "moat.house.kvx")] == [None] * 3


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", "x" * 65], ids=str)
def test_a_name_that_cannot_be_a_networks_is_refused(name: str) -> None:
    with pytest.raises(errors.BadConfig, match="network"):
        nats_subjects.Names(name)


@pytest.mark.parametrize("value", [None, b"", b"\x01"], ids=["deletion", "empty", "value"])
@pytest.mark.parametrize(
    ("session", "expires_at"), [(None, None), ("s", None), (None, 4e9), ("s", 4e9)], ids=repr
)
@pytest.mark.parametrize(("nth", "size"), [(0, 1), (0, 2), (6, 7)], ids=str)
def test_a_record_comes_back_from_its_body(
    value: bytes | None, session: str | None, expires_at: float | None, nth: int, size: int
) -> None:
    write = Write(P("a"), value, origin="n:1", tick=7, session=session, expires_at=expires_at)
    place = nats_record.Place(9, 1, 5.5, 0)
    came = nats_record.delivered(P("a"), place, nats_record.body(write, 3, nth, size))
    assert came.record == Record(9, P("a"), value, 5.5, "n:1", 7, session, expires_at)
    assert (came.prev, came.nth, came.size) == (3, nth, size)
    assert came.group_end == 9 + size - 1 - nth


@pytest.mark.parametrize("data", [b"", b"on", b"\x93\x01\x02\x03", b"\x95\x02\x00\x00\x00\x00"])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(nats_record.NotOurs):
        nats_record.delivered(P("a"), nats_record.Place(9, 1, 5.5, 0), data)


@pytest.mark.parametrize(
    ("reply", "place"),
    [
        ("$JS.ACK.s.c.1.42.7.1500000000.3", nats_record.Place(42, 7, 1.5, 3)),
        ("$JS.ACK.dom.acc.s.c.1.42.7.1500000000.3.rnd", nats_record.Place(42, 7, 1.5, 3)),
        ("$JS.ACK.dom.acc.s.c.1.42.7.1500000000.3", nats_record.Place(42, 7, 1.5, 3)),
        ("$JS.FC.s.c.x", None),
        ("_INBOX.x.1", None),
    ],
    ids=["short", "long", "long-without-token", "flow-control", "inbox"],
)
def test_a_reply_subject_tells_the_place(reply: str, place: nats_record.Place | None) -> None:
    assert nats_record.place(reply.encode()) == place


def test_a_url_names_nodes_and_network() -> None:
    found = nats_settings.parse("nats://one,two:4333,[::1]:4444/house")
    assert found.servers == ("one:4222", "two:4333", "[::1]:4444")
    assert found.access == config.NatsConfig(network="house")
    assert not found.tls
    assert found.place == "nats://one:4222,two:4333,[::1]:4444/house"


def test_who_we_are_may_be_in_the_url_and_is_not_shown() -> None:
    found = nats_settings.parse("tls://me:p%40ss@one", config.NatsConfig(token="old"))
    assert (found.access.user, found.access.password, found.access.token) == ("me", "p@ss", None)
    assert found.tls
    assert "p@ss" not in found.place
    assert nats_settings.parse("nats://s3cret@one").access.token == "s3cret"


def test_a_leaf_names_the_domain_of_its_network() -> None:
    found = nats_settings.parse("nats://leaf/house?domain=hub")
    assert (found.access.domain, found.api) == ("hub", "$JS.hub.API")
    assert found.place == "nats://leaf:4222/house?domain=hub"
    assert nats_settings.parse("nats://leaf?domain=hub").access.network == "main"
    found = nats_settings.parse("nats://leaf", config.NatsConfig(domain="hub"))
    assert found.api == "$JS.hub.API"
    assert nats_settings.parse("nats://one").api == "$JS.API"


@pytest.mark.parametrize("password", ["s3/cr:et", "s3@cr:et", "s3@cr/et"])
def test_no_part_of_a_password_that_is_not_written_right_is_shown(password: str) -> None:
    with pytest.raises(errors.BadConfig) as caught:
        nats_settings.parse(f"nats://me:{password}@one:4222/house")
    assert "%2F" in str(caught.value)
    for part in ("s3", "cr:", "cr/", ":et"):
        assert part not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "access"),
    [
        ("nats://", {}),
        ("http://one", {}),
        ("nats://one:99999", {}),
        ("nats://one two", {}),
        ("nats", {}),
        ("nats://one", {"user": "me"}),
        ("nats://one", {"token": "t", "nkey": "file"}),
        ("nats://one", {"key": "file"}),
        ("nats://one", {"history": 0}),
        ("nats://one", {"replicas": 2}),
        ("nats://one?domain=a.b", {}),
        ("nats://one?other=b", {}),
    ],
    ids=[
        "empty",
        "scheme",
        "port",
        "blank",
        "no-url",
        "user",
        "two-ways",
        "key",
        "hist",
        "repl",
        "domain",
        "query",
    ],
)
def test_settings_that_cannot_be_are_refused(url: str, access: dict[str, str]) -> None:
    with pytest.raises(errors.BadConfig):
        nats_settings.parse(url, config.NatsConfig(**access))  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    access = config.NatsConfig(creds=str(tmp_path / "gone"))
    with pytest.raises(errors.BadConfig, match=r"creds: there is no file .*gone"):
        nats_settings.parse("nats://one", access).options()


SEEDS = {name: operator_mode.Key(prefix).seed.decode() for name, prefix in operator_mode.KINDS}


@pytest.mark.parametrize(
    ("way", "text", "says"),
    [
        ("creds", "nothing of the kind", "is no file with credentials"),
        ("creds", "", "is no file with credentials"),
        ("creds", "-----BEGIN NATS USER JWT-----\nx.y.z\n------END", "BEGIN USER NKEY SEED"),
        ("nkey", "SUAM not one", "has no seed of an NKey"),
        ("nkey", "", "has no seed of an NKey"),
        ("nkey", SEEDS["account"], "is not a user's"),
    ],
    ids=["creds", "creds-empty", "creds-without-seed", "nkey", "nkey-empty", "nkey-of-an-account"],
)
def test_a_file_that_lets_nobody_in_is_told_without_what_is_in_it(
    way: str, text: str, says: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text(text)
    access = config.NatsConfig(**{way: str(tmp_path / "file")})  # type: ignore[arg-type]
    with pytest.raises(errors.BadConfig) as caught:
        nats_settings.parse("nats://one", access).options()
    assert says in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)
    assert not text or text not in str(caught.value)
