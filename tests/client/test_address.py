"""URLs of servers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv import config, errors
from moat_kv.client import address


@pytest.mark.parametrize(
    ("url", "host", "port", "socket"),
    [
        ("tcp://127.0.0.1:1234", "127.0.0.1", 1234, None),
        ("tcp://example.org", "example.org", config.DEFAULT_PORT, None),
        ("tcp://[::1]:80", "::1", 80, None),
        ("tcp://host:80/", "host", 80, None),
        ("unix:///run/moat.sock", "", 0, "/run/moat.sock"),
    ],
    ids=["v4", "default-port", "v6", "slash", "unix"],
)
def test_a_url_gives_an_address(url: str, host: str, port: int, socket: str | None) -> None:
    found = address.parse(url)
    assert (found.url, found.host, found.port, found.socket) == (url, host, port, socket)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:27586",
        "http://localhost",
        "tcp://",
        "tcp://host:0",
        "tcp://host:99999",
        "tcp://host:port",
        "tcp://host/path",
        "tcp://me@host",
        "unix://run/moat.sock",
        "unix:///run?x",
        "tcp://[::1",
    ],
)
def test_what_is_no_address_is_refused_and_says_the_forms(url: str) -> None:
    with pytest.raises(errors.BadConfig, match="write tcp://HOST:PORT or unix:///PATH"):
        address.parse(url)


@given(st.text())
def test_any_text_is_an_address_or_refused(url: str) -> None:
    with contextlib.suppress(errors.BadConfig):
        assert address.parse(url).url == url


def test_what_is_given_goes_before_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(config.URL_VARIABLE, "tcp://three:3 tcp://four:4")
    settings = config.Config(client=config.ClientConfig(url=("tcp://two:2",)))
    assert [one.host for one in address.resolve("tcp://one:1", settings)] == ["one"]
    assert [one.host for one in address.resolve(["tcp://a", "tcp://b"], None)] == ["a", "b"]
    assert [one.host for one in address.resolve(None, settings)] == ["two"]
    assert [one.host for one in address.resolve(None, None)] == ["three", "four"]
    monkeypatch.delenv(config.URL_VARIABLE)
    assert [one.url for one in address.resolve(None, None)] == [config.DEFAULT_URL]
    with pytest.raises(errors.BadConfig):
        address.resolve([], None)
