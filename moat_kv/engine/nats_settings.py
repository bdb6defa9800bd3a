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

_URL = re.compile(r"(nats|tls)://(?:([^@/]*)@)?([^/@?]+)(?:/([^/?]*))?/?(?:\?domain=([^&=]*))?")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
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
        domain = f"?domain={self.access.domain}" if self.access.domain is not None else ""
        return f"nats://{','.join(self.servers)}/{self.access.network}{domain}"

    @property
    def api(self) -> str:
        """The subject that JetStream's interface is below."""
        return "$JS.API" if self.access.domain is None else f"$JS.{self.access.domain}.API"

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
        # nats-py would look for what is not in them for ever.
        if access.nkey is not None:
            _check_seed("nkey", given["nkeys_seed"], None)
        if access.creds is not None:
            _after("creds", given["user_credentials"], "BEGIN NATS USER JWT")
            _check_seed("creds", given["user_credentials"], "BEGIN USER NKEY SEED")
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
    """The settings in `nats://[user:password@|token@]host[:port],...[/NETWORK][?domain=DOMAIN]`,
    or `tls://`.

    User, password, token, network and domain in the URL go before those in `access`. Raises
    BadConfig.
    """
    access = access or config.NatsConfig()
    found = _URL.fullmatch(url)
    if found is None or "@" in (found[4] or ""):
        # (What does not fit may be a part of a password: not shown.)
        hint = "; a / or @ in a password is written %2F or %40" if "@" in url else ""
        raise errors.BadConfig("engine", f"a network is nats://host:port,host:port/NETWORK{hint}")
    scheme, who, hosts, network, domain = found.groups()
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
    if domain is not None:
        access = dataclasses.replace(access, domain=domain)
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
    if access.domain is not None and _DOMAIN.fullmatch(access.domain) is None:
        raise errors.BadConfig("nats: domain", "letters, digits, - and _, 64 at most")
    if access.history is not None and not 1 <= access.history <= 1_000:
        raise errors.BadConfig("nats: history", "1 to 1000")
    if access.replicas is not None and access.replicas not in (1, 3, 5):
        raise errors.BadConfig("nats: replicas", "1, 3 or 5")


def _file(name: str, text: str | None) -> str | None:
    """The place of a file that has to be there. Raises BadConfig."""
    if text is None:
        return None
    place = pathlib.Path(text).expanduser().absolute()
    if not place.is_file():
        raise errors.BadConfig(f"nats: {name}", f"there is no file {place}")
    return str(place)


def _check_seed(name: str, place: str, title: str | None) -> None:
    """Raises BadConfig, which does not show it, if it is not the seed of a user's NKey."""
    import nkeys  # type: ignore[import-untyped,unused-ignore]

    seed = _text(name, place) if title is None else _after(name, place, title)
    try:
        prefix, _ = nkeys.decode_seed(bytearray(seed.strip().encode()))
        nkeys.from_seed(bytearray(seed.strip().encode())).wipe()
    except (nkeys.NkeysError, ValueError) as exc:
        raise errors.BadConfig(f"nats: {name}", f"{place} has no seed of an NKey") from exc
    if prefix != nkeys.PREFIX_BYTE_USER:
        raise errors.BadConfig(f"nats: {name}", f"the seed in {place} is not a user's")


def _after(name: str, place: str, title: str) -> str:
    """The line below a title. Raises BadConfig."""
    lines = _text(name, place).splitlines()
    below = [line for line, above in zip(lines[1:], lines, strict=False) if title in above]
    if not below or not below[0].strip():
        raise errors.BadConfig(f"nats: {name}", f"{place} is no file with credentials: {title!r}")
    return below[0]


def _text(name: str, place: str) -> str:
    try:
        return pathlib.Path(place).read_text("utf-8", "replace")
    except OSError as exc:
        raise errors.BadConfig(f"nats: {name}", f"{place}: {exc.strerror}") from exc
