"""Where a network's NATS is and how to get in: from the engine's URL and the configuration.

`engine.nats` is made with `Settings`, `nats_line` connects by them. Reads the files that they name
when asked for a TLS context, and nothing else.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import ssl
import urllib.parse
from dataclasses import dataclass
from typing import Any

from moat_kv import config, errors

DEFAULT_PORT = 4222

_URL = re.compile(r"(nats|tls)://(?:([^@/]*)@)?([^/@]+)(?:/([^/]*))?/?")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one server gets to its network."""

    servers: tuple[str, ...]
    """`host:port` of NATS nodes; any of them will do."""
    access: config.NatsConfig
    tls: bool = False
    """Whether a line without TLS is refused."""

    @property
    def place(self) -> str:
        """For messages: without anything secret."""
        return f"nats://{','.join(self.servers)}/{self.access.network}"

    def options(self) -> dict[str, Any]:
        """The arguments of nats-py's `connect` that say who we are. Raises BadConfig."""
        access = self.access
        given: dict[str, Any] = {
            "user": access.user,
            "password": access.password,
            "token": access.token,
            "nkeys_seed": _file("nkey", access.nkey),
            "user_credentials": _file("creds", access.creds),
        }
        context = self._context()
        if context is not None:
            given["tls"] = context
        return {name: value for name, value in given.items() if value is not None}

    def _context(self) -> ssl.SSLContext | None:
        access = self.access
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=_file("ca", access.ca))
            if access.cert is not None:
                certificate = _file("cert", access.cert)
                assert certificate is not None
                context.load_cert_chain(certificate, _file("key", access.key))
        except (OSError, ssl.SSLError) as exc:
            raise errors.BadConfig("nats: ca, cert, key", str(exc)) from exc
        return context


def parse(url: str, access: config.NatsConfig | None = None) -> Settings:
    """The settings in `nats://[user:password@|token@]host[:port],...[/NETWORK]`, or `tls://`.

    User, password, token and network in the URL go before those in `access`. Raises BadConfig.
    """
    access = access or config.NatsConfig()
    found = _URL.fullmatch(url)
    if found is None:
        raise errors.BadConfig("engine", "a network is nats://host:port,host:port/NETWORK")
    scheme, who, hosts, network = found.groups()
    if who:
        user, _, password = who.partition(":")
        named: dict[str, Any] = {"user": _plain(user), "password": _plain(password)}
        if not password:
            named = {"token": _plain(user)}
        access = dataclasses.replace(
            access, **({"user": None, "password": None, "token": None} | named)
        )
    if network:
        access = dataclasses.replace(access, network=network)
    _check(access)
    tls = scheme == "tls" or access.ca is not None or access.cert is not None
    return Settings(
        servers=tuple(_server(each) for each in hosts.split(",")), access=access, tls=tls
    )


def _server(text: str) -> str:
    found = _HOST.fullmatch(text.strip())
    if found is None or int(found[2] or 1) > 65535:
        raise errors.BadConfig("engine", f"{text!r} is no host:port")
    return f"{found[1]}:{found[2] or DEFAULT_PORT}"


def _plain(text: str) -> str:
    return urllib.parse.unquote(text)


def _check(access: config.NatsConfig) -> None:
    ways = {
        "user": access.user,
        "token": access.token,
        "nkey": access.nkey,
        "creds": access.creds,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise errors.BadConfig(f"nats: {', '.join(given)}", "one of them says who this server is")
    if (access.user is None) != (access.password is None):
        raise errors.BadConfig("nats", "user and password go together")
    if access.key is not None and access.cert is None:
        raise errors.BadConfig("nats: key", "it goes with cert")
    if access.history is not None and not 1 <= access.history <= 1_000:
        raise errors.BadConfig("nats: history", "1 to 1000")
    if access.replicas is not None and access.replicas not in (1, 3, 5):
        raise errors.BadConfig("nats: replicas", "1, 3 or 5")


def _file(name: str, text: str | None) -> str | None:
    """The place of a file that has to be there."""
    if text is None:
        return None
    place = pathlib.Path(text).expanduser().absolute()
    if not place.is_file():
        raise errors.BadConfig(f"nats: {name}", f"there is no file {place}")
    return str(place)
