"""Where servers are: URLs read into addresses, and the choice of those to try.

Used by `client.open_client` before anything is connected. No I/O, but one look at the environment.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from moat_kv import config as config_module
from moat_kv import errors

_FORMS = "write tcp://HOST:PORT or unix:///PATH"


@dataclass(frozen=True, kw_only=True)
class Address:
    """One server: a host and port, or a Unix socket."""

    url: str
    """As it was given, for messages."""
    host: str = ""
    port: int = 0
    socket: str | None = None
    """The file of a Unix socket; None for TCP."""


def parse(url: str) -> Address:
    """The address in a URL: `tcp://host:port` (the port may be left out) or `unix:///path`.

    Raises BadConfig, which says what can be written.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise errors.BadConfig("url", f"{url!r}: {exc}; {_FORMS}") from exc
    if parts.query or parts.fragment or parts.username is not None:
        raise errors.BadConfig("url", f"{url!r} has more than a place in it; {_FORMS}")
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return Address(url=url, socket=parts.path)
    if parts.scheme == "tcp" and parts.hostname and parts.path in ("", "/") and port != 0:
        return Address(url=url, host=parts.hostname, port=port or config_module.DEFAULT_PORT)
    raise errors.BadConfig("url", f"{url!r} is no address of a server; {_FORMS}")


def resolve(
    url: str | Sequence[str] | None, config: config_module.Config | None
) -> tuple[Address, ...]:
    """The servers to try, in order: those given, else the configuration's.

    Without either, those in MOAT_KV_URL (blanks between them), else this machine's default port.
    Raises BadConfig.
    """
    urls: Sequence[str]
    if isinstance(url, str):
        urls = (url,)
    elif url is not None:
        urls = tuple(url)
    elif config is not None:
        urls = config.client.url
    else:
        urls = os.environ.get(config_module.URL_VARIABLE, "").split()
        urls = urls or (config_module.DEFAULT_URL,)
    if not urls:
        raise errors.BadConfig("url", f"at least one is needed; {_FORMS}")
    return tuple(parse(each) for each in urls)
